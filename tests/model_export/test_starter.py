"""What the repository ships as starting weights."""

import hashlib
import json

import numpy as np
import pytest

from model_export.network import PRESETS, size_of
from model_export.starter import SHIPPED, STARTER_FOLDER, UNTRAINED, NoStarter, load_start


def test_the_shipped_starter_is_small_and_is_what_its_provenance_says():
    checkpoint = STARTER_FOLDER / "small.npz"
    provenance = json.loads((STARTER_FOLDER / "provenance.json").read_text())
    assert checkpoint.stat().st_size <= 2_000_000
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() == provenance["checkpoint_sha256"]
    start = load_start("small", SHIPPED, None)
    assert start.size == PRESETS["small"] == size_of(start.tensors)
    assert start.vocabulary.sha256() == provenance["vocabulary"]["sha256"]
    assert len(start.vocabulary) == 10_000
    assert set(provenance["inputs"]) == {"public", "donors", "dev"}


def test_the_shipped_weights_know_some_english():
    from model_export.reference import context_logits

    start = load_start("small", SHIPPED, None)
    for context, expected in (("how are", "you"), ("thank you so", "much"), ("i don't", "know"), ("do you want", "to")):
        ids = np.array([1, *start.vocabulary.encode(context.split())], np.int32)
        best = np.argsort(-context_logits(start.tensors, ids)[4:])[:3] + 4
        assert expected in [start.vocabulary.words[i] for i in best], context


def test_a_preset_without_shipped_weights_says_which_have_some():
    with pytest.raises(NoStarter, match="shipped for: small; there are none for reference"):
        load_start("reference", SHIPPED, None)


def test_untrained_weights_take_the_head_of_the_vocabulary_and_repeat():
    first, second = load_start("tiny", UNTRAINED, None), load_start("tiny", UNTRAINED, None)
    assert len(first.vocabulary) == PRESETS["tiny"].words
    assert first.vocabulary.words == load_start("small", SHIPPED, None).vocabulary.words[:600]
    assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
