"""The subcommands of ``compass-agent``: each file adds its parser and runs what it parsed."""
