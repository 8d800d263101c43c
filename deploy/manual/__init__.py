"""Man pages and shell completion, made from the commands' own parsers and from the configuration's comments.

    PYTHONPATH=deploy:controlplane python3 -m manual FOLDER

So they say what `--help` says. The package's build runs it; nothing here is installed.
"""
