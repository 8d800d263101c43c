"""What is known of the ways to remote hosts, and whether flows meet congestion: edges of the core's ports."""
