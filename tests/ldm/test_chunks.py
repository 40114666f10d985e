"""Attention in chunks of queries: the same numbers, in less memory where scores are held."""

import threading

import pytest
import torch

from ldm import ops
from ldm.config import VAEConfig
from ldm.vae import VAE
from support.allocations import peak_of
from support.numbers import randn, randomize, relative_error


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("queries", [1, 7, 16, 100])
def test_chunks_are_the_whole(backend, queries):
    attend = ops.Attend(heads=3)
    q, k, v = randn(2, 16, 24, seed=1), randn(2, 11, 24, seed=2), randn(2, 11, 24, seed=3)
    with ops.backend(backend):
        whole = attend(q, k, v)
        with ops.attention_chunks(queries):
            assert relative_error(attend(q, k, v), whole) < 1e-13


def test_texts_see_no_later_words():
    """Causal attention of a chunk would take its first query for the first of all."""
    attend = ops.Attend(heads=2, causal=True)
    q, k, v = (randn(1, 9, 8, seed=seed) for seed in (1, 2, 3))
    whole = attend(q, k, v)
    with ops.attention_chunks(4):
        assert relative_error(attend(q, k, v), whole) < 1e-13


def test_scores_of_a_chunk_are_held():
    """The reference's 1536 x 1536 scores and their exponentials, in a sixteenth of the rows."""
    vae = randomize(VAE(VAEConfig(channels=(8,), groups=4)), seed=1).eval()
    z = randn(1, 4, 32, 48).float()
    with torch.no_grad(), ops.backend("reference"):
        whole = peak_of(lambda: vae.decoder.mid_block(vae.decoder.conv_in(z)))
        with ops.attention_chunks(96):
            assert peak_of(lambda: vae.decoder.mid_block(vae.decoder.conv_in(z))) < whole / 8


def test_the_choice_ends_with_the_block_and_stays_in_the_thread(monkeypatch):
    sizes = []
    monkeypatch.setattr(ops, "attention_reference", lambda q, k, v, causal: sizes.append(q.shape[2]) or q)
    q = randn(1, 1, 6, 4)

    def run():
        with ops.backend("reference"):
            ops.attention(q, q, q)

    with ops.attention_chunks(4):
        with ops.attention_chunks(3):
            run()
        run()
        other = threading.Thread(target=run)
        other.start()
        other.join()
    run()
    assert sizes == [3, 3, 4, 2, 6, 6]
    with pytest.raises(ValueError, match="^chunks of 0 queries: choose at least 1, such as 1024$"):
        with ops.attention_chunks(0):
            pass
