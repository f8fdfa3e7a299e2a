"""What the tools around the operators share: benchmark cases, measuring, fuzzing, checks on a GPU."""
