"""What the commands beside this folder share: benchmark cases, measuring, fuzzing, checks on a GPU."""
