"""`streamjax VERB`: finds the verb, runs it, and turns what went wrong into a line and a number.

Only the verb that was asked for is imported, so that `streamjax --help` answers at once.

Exit codes: 0 done, 1 the work failed, 2 bad arguments or input (one line on stderr), 130 stopped
by Ctrl-C. Results go to stdout, progress to stderr.
"""

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Sequence

VERBS = {
    "demo": "make a world, train a streaming assistant on it, watch a video with it",
    "ablate": "train variants of the demo's assistant over seeds, and compare them",
    "train": "run a recipe, or go on with it where it stopped",
    "stream": "watch a video, camera or url with a model, a line a second",
    "replay": "run a traced stream again and compare it turn by turn",
    "redecide": "make a trace's decisions again with other thresholds, without the model",
    "encode": "write a StreamFormer's features of a video, and where texts fit it",
    "eval": "score a model on a benchmark, or on held-out records",
    "eval score": "score answers to a benchmark that were made elsewhere",
    "eval compare": "put two results side by side, with intervals",
    "fit": "compile a recipe for a pod: does it fit, how fast would it be",
    "export": "write a training run as a Hugging Face folder",
    "bench": "time a stream, or a training step, beside the floor of this machine",
    "world": "write the embedded world: videos and their annotations",
    "data pack": "pack pre-training data as ArrayRecord shards, a TFDS folder",
    "data info": "say what packed data hold, and check them",
    "doctor": "say what this machine has: versions, devices, number types, codecs",
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if args[0] == "--version":
        from streamjax import __version__

        print(__version__)
        return 0
    # `./score` where a model's folder has the name of a verb's second word.
    words = 2 if " ".join(args[:2]) in VERBS else 1
    name, rest = " ".join(args[:words]), args[words:]
    if name not in VERBS:
        import difflib

        group = [verb for verb in VERBS if verb.startswith(f"{name} ")]
        near = [] if group else difflib.get_close_matches(name, VERBS, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"wanted one of {', '.join(group or VERBS)}"
        )
        return _say(f"unknown verb {name!r}: {hint}")

    from streamjax.errors import InputError, RunError

    try:
        _parse(name, rest)()
        sys.stdout.flush()
    except SystemExit as exit:  # the help (0), wrong arguments (2), or a verb's own verdict (1)
        return int(exit.code or 0)
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except BrokenPipeError:  # the reader of our stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FloatingPointError, RunError) as error:  # a loss that is no number, a full disk
        _say(str(error))
        return 1
    except OSError as error:  # the system's own names no wish: "/proc/x: No such file or directory"
        told = error.filename is not None and error.strerror
        return _say(f"{error.filename}: {error.strerror}" if told else str(error))
    except InputError as error:
        return _say(str(error))
    return 0


def _parse(name: str, args: list[str]) -> Callable[[], None]:
    """The verb with its arguments. SystemExit: 0 after the help, 2 after a line on what is wrong.

    tyro reads the verb's signature and docstring; it is run by `main`, outside of the parsing.
    """
    import tyro

    from streamjax import verbs

    verb = getattr(verbs, _function(name, args))
    if {"-h", "--help"} & {*args}:  # of all arguments, not of those that are not given yet
        args = ["--help"]

    @functools.wraps(verb)
    def later(*args, **options):
        return functools.partial(verb, *args, **options)

    config = (tyro.conf.PositionalMetavarFromFieldName, tyro.conf.FlagCreatePairsOff)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(later, prog=f"streamjax {name}", args=args, config=config)
    except SystemExit as exit:
        if exit.code:
            # tyro draws a box around several lines; a caller's log wants one.
            words = re.sub(r"[\u2500-\u257f]|\x1b\[[0-9;]*m", " ", told.getvalue())
            wrong = words.partition("For full helptext")[0].replace(" (required)", "")
            _say(f"{name}: {wrong}; see streamjax {name} --help")
        raise


def _function(name: str, args: list[str]) -> str:
    """The verb's function; `eval MODEL pretraining` takes other arguments than `eval MODEL X`."""
    if name == "eval":
        from streamjax.verbs.evaluating import OTHERS

        for i, word in enumerate(args):
            place = i > 0 or {"-h", "--help"} & {*args}
            if word in OTHERS and place and not (i > 1 and args[i - 1].startswith("--")):
                return f"eval_{word}"
    return name.replace(" ", "_")


def _help() -> str:
    wide = max(map(len, VERBS))
    lines = "\n".join(f"  {name:<{wide}}  {what}" for name, what in VERBS.items())
    return (
        "usage: streamjax VERB ...\n\n"
        "Video models that watch: trained in JAX, streamed one frame at a time.\n\n"
        f"{lines}\n\n"
        "streamjax VERB --help tells a verb's options and shows an example.\n"
        "Exit codes: 0 done, 1 the work failed, 2 bad arguments or input."
    )


def _say(line: str) -> int:
    print("streamjax:", " ".join(line.split()), file=sys.stderr)
    return 2
