"""What datapath tests and benchmarks share: the compiled program under BPF_PROG_TEST_RUN."""
