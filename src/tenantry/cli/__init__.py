"""The command line: commands, progress, `--json`."""
