#!/usr/bin/env python3
"""Work of a known size for a container that several programs watch. Standard library only.

    cross_check.py FOLDER

Opens the pipe FOLDER/go before it begins and FOLDER/end before it ends, so that nothing of it is done before the watchers
watch or while they are read. FOLDER lies on a disk.
"""

import mmap
import os
import socket
import sys
import time

SLEEPS = 1000
PROGRAMS = 200
PAGES = 8192
BLOCK = 64 << 10
BLOCKS = 128
ANSWER = 2 << 20

PAGE = mmap.PAGESIZE


def wait(path):
    with open(path, "rb") as pipe:
        pipe.read()


def sleep():
    for _ in range(SLEEPS):
        time.sleep(0.0005)


def programs():
    for _ in range(PROGRAMS):
        child = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(child, 0)


def pages():
    memory = mmap.mmap(-1, PAGES * PAGE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        except OSError:
            pass  # a kernel without huge pages
    for page in range(PAGES):
        memory[page * PAGE] = 1
    memory.close()


def disk(folder):
    """Direct I/O, which is done when the call returns."""
    path = os.path.join(folder, "file")
    with mmap.mmap(-1, BLOCK) as block:
        block.write(b"x" * BLOCK)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        except OSError:
            return  # no file system of a disk, which the test finds out by itself
        for _ in range(BLOCKS):
            os.write(file, block)
        for number in range(BLOCKS):
            os.preadv(file, [block], number * BLOCK)
        os.close(file)
    os.unlink(path)


def network(listener):
    """Reads a connection to its end and answers."""
    connection, _ = listener.accept()
    while connection.recv(1 << 16):
        pass
    connection.sendall(b"y" * ANSWER)
    connection.close()


def main():
    folder = sys.argv[1]
    listener = socket.create_server(("0.0.0.0", 8080))
    print("ready", flush=True)
    wait(os.path.join(folder, "go"))
    sleep()
    programs()
    pages()
    disk(folder)
    network(listener)
    print("finished", flush=True)
    wait(os.path.join(folder, "end"))


if __name__ == "__main__":
    main()
