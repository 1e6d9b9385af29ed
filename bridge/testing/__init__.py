"""Tests that need the kernel: a pytest plugin that runs them in the lab.

``plugin`` decides where a test runs, ``remote`` hands kernel tests to a lab and
brings their results back, ``guest`` is pytest inside the lab, and ``gates`` look
after each kernel test at the kernel's log and at what it left behind.
"""
