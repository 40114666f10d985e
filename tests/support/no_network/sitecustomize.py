"""On PYTHONPATH of the tests and of the programs they start: no connection leaves this machine."""

import socket

connect = socket.socket.connect


def refuse(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"the tests run without network, and something asked for {address}")
    return connect(self, address)


socket.socket.connect = refuse
