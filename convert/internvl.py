"""Makes an InternVL3 folder ready for streaming.

    python convert/internvl.py InternVL3-2B/ InternVL3-2B-hf/
    python convert/internvl.py InternVL3-2B-hf/ streamo-start/ --states --dtype bfloat16

Reads OpenGVLab's original layout (vision_model.*, mlp1.*), the hub's (-hf) and that of transformers
5; writes the hub's, which transformers 4 and 5 both read. --states registers </Silence>,
</Standby> and </Response> in the tokenizer and adds the rows of embeddings that they need, 151674
-> 151680, each the mean of the old ones (specs/vlm.md 1.5). `sj.load` and `sj.save` do the work,
without torch; they are all that is needed where no state tokens are to be added.
"""

import base_model
import script

if __name__ == "__main__":
    script.run(lambda: base_model.main(__doc__, ("internvl", "internvl_chat")))
