"""Many runs: the quickstart, studies over seeds, and probes of many encoders."""
