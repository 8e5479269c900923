"""Reading labelled pictures: `open_dataset("PATH" | "kind:PATH", split)` -> `Dataset`."""
