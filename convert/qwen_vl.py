"""Makes a Qwen2.5-VL or Qwen3-VL folder ready for streaming.

    python convert/qwen_vl.py Qwen2.5-VL-3B-Instruct/ streamo-start/ --states
    python convert/qwen_vl.py trained-by-transformers-5/ hub-layout/ --dtype bfloat16

Reads the hub's names of tensors and those of transformers 5, any style of config.json, one file or
shards; writes the hub's layout and style, which transformers 4 and 5 both read. --states registers
</Silence>, </Standby> and </Response> in the tokenizer (specs/vlm.md 1.5). `sj.load` and `sj.save`
do the work, without torch; they are all that is needed where no state tokens are to be added.
"""

import base_model
import script

if __name__ == "__main__":
    script.run(lambda: base_model.main(__doc__, ("qwen2_5_vl", "qwen3_vl")))
