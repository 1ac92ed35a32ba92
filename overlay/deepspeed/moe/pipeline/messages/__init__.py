"""Hidden states and their gradients between stages.

overlapped.py has the messages of a step, transport.py what carries them, and host_transport.py the
transport between hosts with GPUs.
"""
