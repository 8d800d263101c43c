"""The command `qos2`: one file per subcommand, over the public client. Start at main.py."""
