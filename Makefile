# For fingers that type make: every target is a command of ./dev, which says what each one does.
# Arguments: make test ARGS="-k bucket"

.DEFAULT_GOAL := help
.PHONY: demo run test lint bench vm vagrant deb install lock clean help

demo run test lint bench vm vagrant deb install lock clean help:
	@./dev $@ $(ARGS)
