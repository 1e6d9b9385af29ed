"""Tests that need the kernel: a pytest plugin that runs them in the lab.

``plugin`` decides where a test runs, ``remote`` hands kernel tests to a lab and
brings their results back, ``guest`` is pytest inside the lab, with the ``repository`` and
in the ``setting`` of the host's, and ``gates`` look after each kernel test at the
kernel's log and at what it left behind. ``fixtures`` are for tests of policies;
``expectation`` judges what became of packets, and ``witness`` says why.
"""
