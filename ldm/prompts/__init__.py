"""Prompts with weights, of any length, and such as change while drawing. Tasks alone read a prompt as it is written.

encode(model, texts, rule="a1111")   -> Conditioning, which tasks take in place of prompts and of `negative`
match(cond, uncond)                  the same with contexts of one length, which the two halves of guidance need
scheduled(model, texts, run)         -> what tasks take as `guidance`, for [a:b:0.4], [a|b] and AND
show_prompt(model, text)             a table of chunks, tokens and weights
RULES                                the names of the rules:
    plain           no syntax; a long prompt goes on in further chunks
    a1111           (a:1.2) [a] BREAK; each picture's mean is restored, prompt by prompt
    a1111_batch     the same, with the mean over all prompts of a call, as A1111 takes it
    a1111_no_norm   the same without
    comfyui         (a:1.2), measured from the empty prompt
    compel          a++ (a b)1.2 a--, likewise; less than 1 mixes with the prompt without these words

In reading order: weights (brackets -> weighted text), chunks (-> tokens), rules (what weights do), encoding,
editing (prompts by step), scheduled, view. docs/prompts.md has examples.
"""

from .editing import split_at_and, texts_by_step
from .encoding import encode, match
from .rules import RULES, find_rule
from .scheduled import scheduled
from .view import show_prompt

__all__ = ["RULES", "encode", "find_rule", "match", "scheduled", "show_prompt", "split_at_and", "texts_by_step"]
