"""First configs for one's own images: what is there, rules that choose settings by it, and the files written."""
