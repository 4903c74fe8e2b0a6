"""Options of `model-export export` beside its first ones: sizes, variants, weight kinds. No heavy import."""

import argparse
import re

from wire_contract.errors import Malformed
from wire_contract.topics import ModelTopic, build_topic

POPULATION_RULE = "--population is 1 to 40 of a-z, 0-9 and -, not beginning with -"
MAX_VARIANTS = 8
_VARIANT = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of `export`."""
    for name, meaning in (
        ("words", "entries of the vocabulary, specials counted"),
        ("width", "width of embedding and state"),
        ("cells", "LSTM cells"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"instead of a preset: {meaning}")
    parser.add_argument("--weights", choices=("int8", "float16"), default="int8",
                        help="kept for suggestions (default: int8; float16: about twice the file)")  # fmt: skip
    parser.add_argument("--variant", action="append", default=[], type=_variant, metavar="BxL", dest="variants",
                        help="train signatures for B rows of L tokens, too, like 4x20; may be given again")  # fmt: skip
    parser.add_argument("--minimum-runtime", default="", metavar="RELEASE",
                        help="devices of an older edge-runtime refuse the version, like 0.2")  # fmt: skip


def is_population(name: str) -> bool:
    """Whether a population can bear this name: no topic could announce a version of another one."""
    try:
        build_topic(ModelTopic(name, "refresh"))
    except Malformed:
        return False
    return True


def _variant(text: str) -> tuple[int, int]:
    found = _VARIANT.fullmatch(text)
    if found is None or int(found[1]) > 4096 or int(found[2]) > 4096:
        raise argparse.ArgumentTypeError(f"a variant is ROWSxTOKENS like 4x20, each 1 to 4096, got {text!r}")
    return int(found[1]), int(found[2])
