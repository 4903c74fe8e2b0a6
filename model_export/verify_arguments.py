"""Options of `model-export verify` beside its first ones. No heavy import."""

import argparse


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """Add what a lone file and an offline bundle are verified with."""
    parser.add_argument("--manifest", metavar="FILE", help="of a lone .tflite (default: NAME.manifest.bin or "
                        "manifest.bin beside it)")  # fmt: skip
    parser.add_argument("--root", metavar="FILE", help="of an offline bundle: the root that devices pinned")
