"""Many runs: an example of three, studies over seeds, and probes of many encoders."""
