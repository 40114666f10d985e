"""Files that change a model: LoRA and its kin (names, kinds, read, write), and textual inversion (embedding)."""
