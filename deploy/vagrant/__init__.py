"""Two machines by Vagrant, and the end-to-end test between them: e2e.py on the sender, receiver.py on the receiver."""
