"""The subcommands of ``compass``: each file adds its options and runs what was parsed."""
