"""The kernels against their peers on this machine: suites, runner, host overhead, training step."""
