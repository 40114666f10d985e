"""What other programs read into a prompt and this one does not: told once per kind, with what to use in its place."""

import re
from collections.abc import Iterable

from samplers.options import show

# kind: what it looks like -> what it is elsewhere, and what to use here. "(a red apple)" is nothing of these: brackets
# around words are ordinary English.
SYNTAX = {
    "lora": (r"<(?:lora|lyco|lycoris|hypernet):[^<>]*>", "an adapter in A1111's way: use --lora FILE:STRENGTH"),
    "embedding": (r"\bembedding:[^\s,()]+", "a learned word in ComfyUI's way: use --embedding FILE and the word alone"),
    "weight": (r"\([^()]*[^\s():]\s*:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)", "the weight of words: leave out the brackets"),
    "emphasis": (r"\(\(.*?\)\)|\{\{.*?\}\}|\w\w\+\+(?![\w+])|\)(?:\+|-|[\d.]+\b)", "emphasis: leave out the marks"),
    "schedule": (r"\[[^\[\]]*[:|][^\[\]]*\]", "words that change while drawing: name those that you want"),
    "weakening": (r"\[[^\[\]:|]*\]", "weaker words: leave out the brackets, or use --negative"),
    "choice": (r"\{[^{}|]*\|[^{}]*\}", "a choice: write each as a line of a file, for --prompts"),
    "wildcard": (r"(?<!\w)__[\w/*-]+?__(?!\w)", "a word from a list: write each as a line of a file, for --prompts"),
    "and": (r"(?<=\S)\s+AND\s+(?=\S)", "two prompts at once: use one"),
    "break": (r"(?<!\w)BREAK(?!\w)", "the end of a chunk: use commas"),
    "escape": (r"\\[()\[\]]", "a bracket without meaning: leave out the backslash"),
}


OF_RULES = ("weight", "emphasis", "schedule", "weakening", "and", "break", "escape")  # what --prompt-rule reads
IN_CAPITALS = ("and", "break")  # words of syntax, unless all of the prompt is in capitals
READ = 2000  # characters of a prompt that are looked at; more than any text encoder reads


def find_syntax(texts: Iterable[str], rule: str | None = None) -> list[str]:
    """A message for each kind of syntax that these texts hold and that is not read, with the first place where it
    stands. rule: that of --prompt-rule."""
    messages = {}
    for text in texts:
        for kind, (pattern, meaning) in SYNTAX.items():
            if rule is not None and kind in OF_RULES:
                continue
            place = re.search(pattern, text[:READ])
            is_shouted = kind in IN_CAPITALS and text.isupper()
            if place and not is_shouted and kind not in messages:
                remedy = ", or read it by a --prompt-rule" if kind in OF_RULES else ""
                messages[kind] = f"{show(place[0].strip())} is read literally; elsewhere it is {meaning}{remedy}"
    return list(messages.values())
