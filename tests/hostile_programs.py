"""Programs that try what no program of a model should get, and a world in which every success leaves a trace.

    python tests/hostile_programs.py --at-most full         # JSON: name -> the effects that it had; none is {}

Only the standard library and nanochat.sandbox, so that any user with any interpreter can run it.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nanochat.sandbox import MAX_OUTPUT_BYTES, run_tests

MEMORY_MB = 256
TIMEOUT_S = {"limited": 2.0, "filtered": 0.5, "closed": 0.5, "full": 0.5}  # where effects are wanted, they have time
LATE_S = 0.7  # what a surviving process does, it does within this time
SECRET = "canary-of-the-environment-" + os.urandom(8).hex()  # so that it is in no program's text
FILE_SECRET = "canary-of-a-file-" + os.urandom(8).hex()
EFFECT = "TOOK-EFFECT"

TESTS = """
def check(candidate):
    import random
    assert candidate(2) == 4
    assert candidate(-7) == -14
    for _ in range(5):
        number = random.randint(10**6, 10**7)
        assert candidate(number) == number + number
"""
WRONG = "\ndef double(x):\n    return 0\n"

# Before every program: where the traces are, and shorter words.
PROLOGUE = """
import ctypes, os, sys, time
def took(happened=True):
    if happened: os.write(1, b"TOOK-" + b"EFFECT\\n")  # in two: a program that prints its own text has no effect
def call(name, *arguments):
    number = {
        "socket": (41, 198), "connect": (42, 203), "clone": (56, 220), "vfork": (58, None), "kill": (62, 129),
        "ptrace": (101, 117), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
        "io_uring_setup": (425, 425), "clone3": (435, 435), "memfd_create": (319, 279), "pidfd_open": (434, 434),
        "pidfd_send_signal": (424, 424), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "chroot": (161, 51),
        "add_key": (248, 217), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
        "personality": (135, 92), "sethostname": (170, 161), "openat2": (437, 437), "prlimit64": (302, 261),
        "setpriority": (141, 140), "open_by_handle_at": (304, 265), "execve": (59, 221), "seccomp": (317, 277),
        "capset": (126, 91), "symlinkat": (266, 36), "mkdirat": (258, 34), "fanotify_init": (300, 262), "setuid": (105, 146),
    }[name][os.uname().machine == "aarch64"]
    return ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
def descriptors(first=0):
    return range(first, 256)
"""

LOOPS = {
    "endless loop": "while True: pass",
    "endless sleep": "time.sleep(3600)",
    "deaf to signals": """
        import signal
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: time.sleep(1)
    """,
    "a lock that nobody opens": "import threading\nlock = threading.Lock(); lock.acquire(); lock.acquire()",
    "a pattern that takes for ever": "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
    "an endless answer": "def double(x):\n    while True: pass",
    "threads that go on": """
        import threading
        for _ in range(8): threading.Thread(target=time.sleep, args=(3600,)).start()
    """,
    "a destructor that never ends": """
        class Last:
            def __del__(self):
                while True: pass
        last = Last()
        del last
    """,
    "processor time given back": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))\ntook()",
}
MEMORY = {
    "memory": "x = []\nfor _ in range(200): x.append(bytearray(10**7))\ntook()",
    "mapped memory": "import mmap\nx = [mmap.mmap(-1, 10**8) for _ in range(20)]\ntook()",
    "a large integer": "x = 1 << 10**10\ntook()",
    "a long text": "x = 'x' * 2 * 10**9\ntook()",
    "more memory allowed": """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        x = bytearray(10**9)
        took()
    """,
    "the judge fed to death": "def double(x):\n    return [0] * 10**8",
    "recursion": "def f(): return f()\nf()",
    "recursion in C": """
        sys.setrecursionlimit(10**9)
        x = []
        for _ in range(10**6): x = [x]
        repr(x)
    """,
    "stack of the parser": "eval('-' * 10**6 + '1')",
    "thousands of threads": """
        import threading
        threading.stack_size(2**15)
        for _ in range(20_000): threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        took()
    """,
    "open files": "x = [open(os.devnull) for _ in range(200)]\ntook()",
    "more open files allowed": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\ntook()",
    "output": "while True: print('x' * 10**6)",
    "output to the error channel": "while True: sys.stderr.write('x' * 10**6)",
    "output past the interpreter": "while True: os.write(1, bytes(10**6))",
}
PROCESSES = {
    "fork": "took(os.fork() >= 0)",
    "fork past os": "import posix\ntook(posix.fork() >= 0)",
    "fork by number": "took(call('clone', 17, 0, 0, 0, 0) >= 0)",
    "vfork by number": "took(call('vfork') >= 0)",
    "clone3": "took(call('clone3', bytes(64), 64) >= 0)",
    "fork in the C library": "took(ctypes.CDLL(None).fork() >= 0)",
    "a daemon": """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(0.3)
                open(LOOT + "/alive", "w").close()
            os._exit(0)
    """,
    "a shell": "os.system('touch ' + LOOT + '/shell')",
    "a shell of the C library": "ctypes.CDLL(None).system(('touch ' + LOOT + '/shell').encode())",
    "subprocess": "import subprocess\nsubprocess.run(['touch', LOOT + '/subprocess'])",
    "posix_spawn": "os.waitpid(os.posix_spawn('/bin/touch', ['touch', LOOT + '/spawned'], {}), 0)",
    "popen": "os.popen('touch ' + LOOT + '/popen').read()",
    "another program in its place": "os.execv('/bin/touch', ['touch', LOOT + '/exec'])",
    "a program in memory": """
        memory = call('memfd_create', b'x', 0)
        took(memory >= 0)
    """,
    "multiprocessing": "import multiprocessing as m\nm.get_context('fork').Process(target=took).start()",
    "a terminal of its own": "import pty\ntook(pty.fork()[0] >= 0)",
    "out of the session": "os.setsid()\ntook()",
    "out of the group": "os.setpgid(0, 0)\ntook()",
}
FILES = {
    "overwriting": "open(PRECIOUS, 'w').write('gone')",
    "appending": "open(PRECIOUS, 'a').write('more')",
    "deleting": "os.remove(PRECIOUS)",
    "deleting past os": "import posix\nposix.unlink(PRECIOUS)",
    "deleting by a fresh os": "import importlib\nimportlib.reload(os).remove(PRECIOUS)",
    "deleting a tree": "import shutil\nshutil.rmtree(LOOT)",
    "renaming": "os.rename(PRECIOUS, PRECIOUS + '.old')",
    "changing permissions": "os.chmod(PRECIOUS, 0o777)",
    "changing times": "os.utime(PRECIOUS, (0, 0))",
    "cutting off": "os.truncate(PRECIOUS, 0)",
    "attributes": "os.setxattr(PRECIOUS, 'user.x', b'1')\ntook()",
    "a new file": "open(LOOT + '/new', 'w').close()",
    "a new folder": "os.mkdir(LOOT + '/new')",
    "a new folder by number": "call('mkdirat', -100, (LOOT + '/new').encode(), 511)",
    "a symbolic link": "os.symlink(PRECIOUS, LOOT + '/link')",
    "a link in its folder": "os.symlink(PRECIOUS, 'link'); open('link', 'w').write('gone')",
    "a hard link": "os.link(PRECIOUS, LOOT + '/link')",
    "a pipe with a name": "os.mkfifo(LOOT + '/pipe')",
    "a device": "os.mknod(LOOT + '/device')",
    "a file without a name": "os.open(LOOT, os.O_TMPFILE | os.O_RDWR)\ntook()",
    "the C library's files": "ctypes.CDLL(None).fopen((LOOT + '/c').encode(), b'w')",
    "a late call that opens": "took(call('openat2', -100, PRECIOUS.encode(), (ctypes.c_uint64 * 3)(2, 0, 0), 24) >= 0)",
    "a database": "import sqlite3\nsqlite3.connect(LOOT + '/db').execute('create table t (x)')",
    "shared memory with a name": "open('/dev/shm/' + MARK, 'w').close()",
    "the folder of all": "open('/tmp/' + MARK, 'w').close()",
    "a file by its handle": "took(call('open_by_handle_at', -100, bytes(64), 2) >= 0)",
    "Python's own library": "open(os.__file__, 'a').close()\ntook()",
    "up and out": "os.chdir('/'); os.chdir(LOOT); open('up', 'w').close()",
    "flooding its folder": "f = open('large', 'wb')\nfor _ in range(50): f.write(bytes(10**6)); f.flush()\ntook()",
    "flooding with files": "for i in range(3000): open(str(i), 'w').close()\ntook()",
    "folder upon folder": "for i in range(1500): os.mkdir('d'); os.chdir('d')",
    "a locked folder": "os.mkdir('a'); open('a/b', 'w').close(); os.chmod('a', 0)",
    "its own folder": "os.rmdir(os.getcwd())\ntook(not os.path.exists(HOME))",
}
READS = {
    "a file": "print(open(SECRET_FILE).read())",
    "a file by way of C": """
        libc = ctypes.CDLL(None)
        text = ctypes.create_string_buffer(100)
        libc.read(libc.open(SECRET_FILE.encode(), 0), text, 99)
        print(text.value)
    """,
    "a file as a module": "import runpy, linecache\nprint(linecache.getlines(SECRET_FILE))",
    "a file through /proc": "print(open('/proc/self/root' + SECRET_FILE).read())",
    "a file through the parent": "print(open(f'/proc/{HOST}/root{SECRET_FILE}').read())",
    "names of files": "took('secret.txt' in os.listdir(LOOT))",
    "the environment": "print(dict(os.environ), file=sys.stdout)",
    "the environment of the C library": """
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_char_p
        print(libc.getenv(b'CANARY'))
    """,
    "the host's environment": "print(open(f'/proc/{HOST}/environ').read())",
    "everybody's environment": """
        for name in os.listdir('/proc'):
            try: print(open(f'/proc/{name}/environ').read())
            except OSError: pass
    """,
    "the host's memory": "open(f'/proc/{HOST}/mem', 'rb').read(0)\ntook()",
    "the judge's memory": "open(f'/proc/{os.getppid()}/mem', 'rb').read(0)\ntook()",
    "the judge's memory by number": """
        local = ctypes.create_string_buffer(8)
        vector = (ctypes.c_uint64 * 2)(ctypes.addressof(local), 8)
        took(call('process_vm_readv', os.getppid(), vector, 1, vector, 1, 0) >= 0)
    """,
    "the judge's files": "took(bool(os.listdir(f'/proc/{os.getppid()}/fd')))",
    "the users": "took('root' in open('/etc/passwd').read())",
    "the machine": "took(bool(open('/proc/cpuinfo').read()))",
    "the network's names": "took(bool(open('/etc/hosts').read()))",
}
SOCKETS = {
    "a connection": "import socket\ns = socket.create_connection(('127.0.0.1', TCP)); s.sendall(MARK.encode())",
    "_socket": "import _socket\ns = _socket.socket(2, 1); s.connect(('127.0.0.1', TCP)); s.send(MARK.encode())",
    "by number": """
        import struct
        s = call('socket', 2, 1, 0)
        call('connect', s, struct.pack('=H', 2) + struct.pack('>H', TCP) + bytes([127, 0, 0, 1]) + bytes(8), 16)
        os.write(s, MARK.encode())
    """,
    "by a number of x32": "took(ctypes.CDLL(None).syscall(0x40000000 | 41, 2, 1, 0) >= 0)",
    "by 32-bit code": """
        import mmap
        code = mmap.mmap(-1, 4096, prot=7)  # socketcall(2) by int 0x80, which filters of 64-bit numbers know under another name
        code.write(bytes.fromhex('53b867010000bb02000000b90100000031d2cd805bc3'))
        took(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))() >= 0)
    """,
    "the C library": "took(ctypes.CDLL(None).socket(2, 1, 0) >= 0)",
    "datagrams": "import socket\nsocket.socket(2, socket.SOCK_DGRAM).sendto(MARK.encode(), ('127.0.0.1', UDP))",
    "IPv6": "import socket\nsocket.socket(socket.AF_INET6)\ntook()",
    "a unix socket": "import socket\ns = socket.socket(socket.AF_UNIX); s.connect(UNIX); s.sendall(MARK.encode())",
    "an abstract unix socket": """
        import socket
        s = socket.socket(socket.AF_UNIX); s.connect(ABSTRACT); s.sendall(MARK.encode())
    """,
    "a pair of sockets": "import socket\nsocket.socketpair()\ntook()",
    "raw packets": "import socket\nsocket.socket(2, socket.SOCK_RAW, 1)\ntook()",
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\ntook()",
    "the kernel's ciphers": "import socket\nsocket.socket(38, socket.SOCK_SEQPACKET, 0)\ntook()",
    "the hypervisor": "import socket\nsocket.socket(40, 1, 0)\ntook()",
    "listening": "import socket\nsocket.create_server(('127.0.0.1', 0))\ntook()",
    "a web page": "import urllib.request\nurllib.request.urlopen(f'http://127.0.0.1:{TCP}/{MARK}', timeout=0.2)",
    "asyncio": "import asyncio\nasyncio.run(asyncio.sleep(0))\ntook()",
    "a ring": "took(call('io_uring_setup', 8, (ctypes.c_uint32 * 30)()) >= 0)",
    "inherited descriptors": """
        for descriptor in descriptors(3):
            try: os.write(descriptor, MARK.encode())
            except OSError: pass
    """,
    "names": "import socket\ntook(bool(socket.getaddrinfo('localhost', 80)))",
}
SIGNALS = {
    "killing the host": "import signal\nos.kill(HOST, signal.SIGUSR1)",
    "killing the host's group": "import signal\nos.killpg(os.getpgid(HOST), signal.SIGUSR1)",
    "killing somebody": "import signal\nos.kill(VICTIM, signal.SIGKILL)",
    "stopping somebody": "import signal\nos.kill(VICTIM, signal.SIGSTOP)",
    "killing by number": "took(call('kill', VICTIM, 9) == 0)",
    "killing by thread": "took(call('tgkill', VICTIM, VICTIM, 9) == 0)",
    "killing by descriptor": """
        import signal
        signal.pidfd_send_signal(os.pidfd_open(VICTIM), signal.SIGKILL)
        took()
    """,
    "a queued signal": "took(call('rt_sigqueueinfo', VICTIM, 10, bytes(128)) == 0)",
    "everybody": "os.kill(-1, 0)\ntook()",
    "the judge": "import signal\nos.kill(os.getppid(), signal.SIGKILL)\ntook()",
    "a signal by a pipe": """
        import fcntl
        reading, writing = os.pipe()
        fcntl.fcntl(reading, fcntl.F_SETOWN, VICTIM)
        took()
    """,
    "tracing": "took(call('ptrace', 16, VICTIM, 0, 0) == 0)",
    "tracing the judge": "took(call('ptrace', 16, os.getppid(), 0, 0) == 0)",
    "another's memory": """
        vector = (ctypes.c_uint64 * 2)(0, 0)
        took(call('process_vm_writev', VICTIM, vector, 1, vector, 1, 0) >= 0)
    """,
    "another's limits": "took(call('prlimit64', VICTIM, 7, (ctypes.c_uint64 * 2)(3, 3), None) == 0)",
    "another's priority": "took(call('setpriority', 0, VICTIM, 19) == 0)",
    "another's processors": "os.sched_setaffinity(VICTIM, {0})\ntook()",
}
KERNEL = {
    "a user namespace": "took(call('unshare', 0x10000000) == 0)",
    "a network namespace": "took(call('unshare', 0x40000000) == 0)",
    "the host's namespaces": "took(call('setns', os.open(f'/proc/{HOST}/ns/mnt', 0), 0) == 0)",
    "mounting": "took(call('mount', b'x', LOOT.encode(), b'tmpfs', 0, None) == 0)",
    "another root": "took(call('chroot', b'/tmp') == 0)",
    "another user": "took(call('setuid', 65533) == 0)",
    "capabilities": """
        header, all_of_them = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[2**32 - 1] * 6)
        took(call('capset', header, all_of_them) == 0)
    """,
    "another name of the machine": "took(call('sethostname', b'hacked', 6) == 0)",
    "System V memory": "took(call('shmget', 0, 4096, 0o1600) >= 0)",
    "System V semaphores": "took(call('semget', 0, 1, 0o1600) >= 0)",
    "System V messages": "took(call('msgget', 0, 0o1600) >= 0)",
    "a queue of messages": "took(call('mq_open', MARK.encode(), 0o102, 0o600, None) >= 0)",
    "keys": "took(call('add_key', b'user', MARK.encode(), b'x', 1, -3) >= 0)",
    "kernel programs": "took(call('bpf', 0, (ctypes.c_uint32 * 20)(2, 4, 4, 1), 80) >= 0)",
    "counters": "took(call('perf_event_open', (ctypes.c_uint32 * 30)(1, 120), 0, -1, -1, 0) >= 0)",
    "faults of pages": "took(call('userfaultfd', 1) >= 0)",
    "watching files": "took(call('fanotify_init', 0x200, 0) >= 0)",
    "another personality": "took(call('personality', 0x0040000) >= 0)",
    "its own filter": "took(call('seccomp', 1, 0, bytes(16)) == 0)",
    "looked into again": "took(ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0)",
    "outliving its parent": "took(ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0)",
    "a crash": "ctypes.string_at(0)",
    "a terminal's input": "import fcntl\nfor d in descriptors(): fcntl.ioctl(d, 0x5412, b'x')\ntook()",
}
# These define the function, wrongly: a pass is the effect.
FAKES = {
    "sys.exit": "sys.exit(0)",
    "os._exit": "os._exit(0)",
    "sys.exit when called": "def double(x): sys.exit(0)",
    "os._exit when called": "def double(x): os._exit(0)",
    "an exit in a thread": "import threading\nthreading.Thread(target=os._exit, args=(0,)).start(); time.sleep(0.1)",
    "atexit": "import atexit; atexit.register(os._exit, 0); sys.exit(0)",
    "printing": "print('passed'); print('ready\\npassed', file=sys.__stdout__)" + WRONG,
    "equal to everything": """
        class Yes:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 4
        def double(x): return Yes()
    """,
    "an integer equal to everything": """
        class Yes(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
            def __add__(self, other): return self
            def __index__(self): return 4
        def double(x): return Yes(5)
    """,
    "a text that encodes itself": """
        class Yes(str):
            def encode(self, *_): return b'4'
            def __eq__(self, other): return True
        def double(x): return Yes('4')
    """,
    "a list equal to everything": """
        class Yes(list):
            def __eq__(self, other): return True
            def __iter__(self): return iter([4])
        def double(x): return Yes([4])
    """,
    "a class that claims to be another": """
        class Yes:
            __class__ = int
            def __eq__(self, other): return True
            def __iter__(self): return iter(range(10**12))
        def double(x): return Yes()
    """,
    "a class of classes": """
        class Meta(type):
            def __subclasscheck__(self, other): return True
            def __instancecheck__(self, other): return True
            def __eq__(self, other): return True
            __hash__ = type.__hash__
        class Yes(metaclass=Meta): pass
        def double(x): return Yes
    """,
    "no assertions": "import builtins; builtins.AssertionError = None" + WRONG,
    "no exceptions": "import builtins; builtins.BaseException = builtins.Exception = None" + WRONG,
    "comparing built in": "import operator, builtins\nbuiltins.int = lambda *_: 4\noperator.eq = lambda a, b: True" + WRONG,
    "a test of its own": "def check(candidate): pass\ncandidate = lambda x: 2 * x" + WRONG,
    "numbers that are not drawn": "import random\nrandom.randint = lambda a, b: 0" + WRONG,
    "a module in the way": "open('random.py', 'w').write('def randint(a, b): return 0')" + WRONG,
    "tracing lines": """
        def trace(frame, event, argument):
            frame.f_locals.update(number=0)
            return trace
        sys.settrace(trace)
        def double(x): return 0
    """,
    "a walk over the frames": """
        def double(x):
            frame = sys._getframe()
            while frame:
                for name, value in list(frame.f_locals.items()):
                    if isinstance(value, bytes):
                        for d in descriptors():
                            try: os.write(d, value)
                            except OSError: pass
                frame = frame.f_back
            return 0
    """,
    "a walk over all objects": """
        import gc
        secrets = [o for o in gc.get_objects() if isinstance(o, (tuple, list, dict))]
        found = [v for o in secrets for v in (o.values() if isinstance(o, dict) else o) if isinstance(v, bytes)]
        for value in [v for v in found if len(v) == 16]:
            for d in descriptors(3):
                try: os.write(d, value)
                except OSError: pass
        def double(x): return 0
    """,
    "forged verdicts": """
        def text(tag, words): return tag + len(words).to_bytes(4, 'big') + words
        for secret in (b'', bytes(16), b'passed'):
            message = b't' + (2).to_bytes(4, 'big') + text(b'u', b'passed') + text(b'b', secret)
            for d in descriptors():
                try: os.write(d, len(message).to_bytes(4, 'big') + message)
                except OSError: pass
        def double(x): return 0
    """,
    "forged answers": """
        def text(tag, words): return tag + len(words).to_bytes(4, 'big') + words
        def double(x):
            message = b't' + (2).to_bytes(4, 'big') + text(b'u', b'value') + b'N'
            for d in descriptors():
                try: os.write(d, 20 * (len(message).to_bytes(4, 'big') + message))
                except OSError: pass
            return 0
    """,
    "a forged class of errors": """
        class AssertionError(BaseException): pass
        class StopIteration(BaseException): pass
        def double(x): raise StopIteration(0)
    """,
    "our own modules replaced": """
        import gc, types
        for function in [o for o in gc.get_objects() if isinstance(o, types.FunctionType)]:
            if 'nanochat' in (function.__module__ or '') and function.__name__ in ('encode', 'describe', 'receive'):
                function.__code__ = (lambda *a, **k: b'N').__code__
        def double(x): return 0
    """,
    "junk in every file": """
        for d in descriptors():
            try: os.write(d, b'ready passed')
            except OSError: pass
    """,
    "junk when called": """
        def double(x):
            for d in descriptors(3):
                try: os.write(d, bytes(1000))
                except OSError: pass
    """,
    "a message without end": """
        def double(x):
            for d in descriptors(3):
                try: os.write(d, bytes([255] * 8))
                except OSError: pass
    """,
    "every file closed": "os.closerange(0, 256)",
    "the pipes swapped": """
        def double(x):
            for d in descriptors(3):
                try: os.dup2(1, d)
                except OSError: pass
            return 0
    """,
    "the verdict taken from the host": """
        def double(x):
            for d in descriptors():
                try: os.write(os.open(f'/proc/{HOST}/fd/{d}', os.O_WRONLY), b'passed')
                except OSError: pass
            return 0
    """,
    "lists within lists": """
        def double(x):
            value = []
            for _ in range(10**5): value = [value]
            return value
    """,
    "a list in itself": "def double(x):\n    value = []\n    value.append(value)\n    return value",
    "items without end": "import itertools\ndef double(x): return itertools.count()",
    "a long number": "def double(x): return 1 << 10**8",
    "half a character": "def double(x): return '\\ud800\\udc00' * x",
    "not a number": "def double(x): return float('nan')",
    "nothing": "def double(x): pass",
    "no function": "double = 4",
    "not even a name": "pass",
    "no program": "def double(",
    "bytes that are no text": "x = '\0'" + WRONG,
    "an error that cannot be described": """
        class Mute(Exception):
            def __str__(self): raise self
        def double(x): raise Mute
    """,
}
GROUPS = {
    "loops": LOOPS, "memory": MEMORY, "processes": PROCESSES, "files": FILES, "reads": READS, "sockets": SOCKETS,
    "signals": SIGNALS, "kernel": KERNEL, "fakes": FAKES,
}  # fmt: skip
PROGRAMS = {f"{group}: {name}": dedent(code) for group, programs in GROUPS.items() for name, code in programs.items()}

# At the lowest tier these do take effect, for every user: the traces are there to be left.
CONTROLS = [
    "files: overwriting", "files: deleting past os", "files: a new folder by number", "files: a symbolic link",
    "files: the C library's files", "files: the folder of all", "reads: a file", "reads: a file by way of C",
    "reads: a file through /proc", "reads: names of files", "reads: the users", "reads: the machine", "sockets: a connection",
    "sockets: by number", "sockets: datagrams", "sockets: a unix socket", "sockets: an abstract unix socket",
    "sockets: listening", "processes: fork", "processes: fork by number", "processes: a daemon", "processes: a shell",
    "processes: subprocess", "processes: another program in its place", "processes: a program in memory",
    "signals: killing the host", "signals: killing somebody", "signals: stopping somebody", "signals: killing by descriptor",
    "kernel: System V memory",
]  # fmt: skip


class World:
    """Canaries: files, listeners, processes, and a variable of the environment. Every program has its own files and process."""

    def __init__(self, folder: Path):
        self.folder, self.received, self.signals = folder, bytearray(), 0
        self.victims: dict[str, subprocess.Popen] = {}
        self.before: dict[str, dict] = {}
        self.sockets = [socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)]
        self.sockets[1].bind(("127.0.0.1", 0))
        self.abstract = f"\0nanochat-{os.getpid()}"
        for address in (str(folder / "unix"), self.abstract):
            self.sockets.append(socket.socket(socket.AF_UNIX))
            self.sockets[-1].bind(address)
            self.sockets[-1].listen(64)
        # connected, and inheritable: it would reach a program that is started carelessly
        self.inherited = socket.create_connection(self.sockets[0].getsockname())
        self.inherited.set_inheritable(True)
        for one in self.sockets:
            threading.Thread(target=self.listen, args=(one,), daemon=True).start()
        os.environ["CANARY"] = SECRET
        signal.signal(signal.SIGUSR1, self.count)

    def count(self, *_) -> None:
        self.signals += 1

    def listen(self, listener: socket.socket) -> None:
        while True:
            try:
                if listener.type == socket.SOCK_DGRAM:
                    self.received += listener.recv(1000)
                else:
                    threading.Thread(target=self.hear, args=(listener.accept()[0],), daemon=True).start()
            except OSError:
                return

    def hear(self, connection: socket.socket) -> None:
        while data := connection.recv(1000):
            self.received += data

    def prepare(self, name: str, code: str) -> str:
        """The program with its own canaries."""
        loot = self.folder / mark(name)
        loot.mkdir()
        (loot / "precious.txt").write_text("precious")
        (loot / "secret.txt").write_text(FILE_SECRET)
        self.before[name] = snapshot(loot)
        self.victims[name] = subprocess.Popen(["sleep", "300"], start_new_session=True)
        known = {
            "HOST": os.getpid(), "VICTIM": self.victims[name].pid, "LOOT": str(loot), "MARK": mark(name),
            "PRECIOUS": str(loot / "precious.txt"), "SECRET_FILE": str(loot / "secret.txt"),
            "TCP": self.sockets[0].getsockname()[1], "UDP": self.sockets[1].getsockname()[1],
            "UNIX": str(self.folder / "unix"), "ABSTRACT": self.abstract,
        }  # fmt: skip
        lines = [f"{key} = {value!r}" for key, value in known.items()]
        default = "" if name.startswith("fakes: ") else WRONG
        # "HOME" is a variable of its environment; the function comes first, in case that the program does not reach its end
        return PROLOGUE + "\n".join(lines) + "\nHOME = os.environ['HOME']\n" + default + code

    def effects(self, name: str, passed: bool, stdout: str) -> dict[str, str]:
        """What a program did, besides being a wrong sample."""
        found = {}
        if passed:
            found["passed"] = "a wrong function"
        if EFFECT in stdout:
            found["did"] = "by its own word"
        if SECRET in stdout or FILE_SECRET in stdout:
            found["read"] = "a secret"
        if len(stdout) > MAX_OUTPUT_BYTES:
            found["flooded"] = "the output"
        if snapshot(self.folder / mark(name)) != self.before[name]:
            found["changed"] = "files"
        for path in (f"/tmp/{mark(name)}", f"/dev/shm/{mark(name)}"):
            if os.path.exists(path):
                os.remove(path)
                found["made"] = path
        if mark(name).encode() in self.received:
            found["sent"] = "something"
        status = Path(f"/proc/{self.victims[name].pid}/stat")
        if self.victims[name].poll() is not None or (status.exists() and status.read_text().split()[2] == "T"):
            found["killed"] = "or stopped a process"
        return found

    def close(self) -> None:
        for one in (*self.sockets, self.inherited):
            one.close()
        for victim in self.victims.values():
            victim.kill()
            victim.wait()


def mark(name: str) -> str:
    return "mark-" + "".join(letter if letter.isalnum() else "-" for letter in name) + f"-{os.getpid()}-"


def snapshot(folder: Path) -> dict:
    if not folder.is_dir():
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        found[path.name] = (status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else None)
    return found


def run_battery(
    names: list[str], *, at_most: str, tier: str | None = None, workers: int = 6
) -> tuple[dict[str, dict[str, str]], float]:
    """Name -> what it did, and the mean time of a program in s. Waits for what a surviving process would do."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        programs = {name: world.prepare(name, PROGRAMS[name]) for name in names}
        seconds = []

        def run(name: str) -> dict[str, str]:
            signals, began = world.signals, time.monotonic()
            result = run_tests(
                programs[name], setup="", tests=TESTS, entry_point="double", timeout_s=TIMEOUT_S[at_most], memory_mb=MEMORY_MB,
                tier=tier or at_most, at_most=at_most,
            )  # fmt: skip
            seconds.append(time.monotonic() - began)
            found = {} if result.passed or result.reason else {"silent": "no reason given"}
            if "the host" in name and world.signals != signals:
                found["signalled"] = "the host"
            return found | ({"passed": "a wrong function"} if result.passed else {}) | {"_stdout": result.stdout}

        with ThreadPoolExecutor(workers) as pool:
            results = dict(zip(names, pool.map(run, names), strict=True))
        time.sleep(LATE_S)
        found = {}
        for name, result in results.items():
            stdout = result.pop("_stdout")
            found[name] = result | world.effects(name, "passed" in result, stdout)
        world.close()
    return found, sum(seconds) / len(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-most", default="full", help="tier")
    parser.add_argument("--tier", help="that must be reached (default: the same)")
    parser.add_argument("--controls", action="store_true", help="only those that take effect at the lowest tier")
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("names", nargs="*", help="of programs (default: all)")
    args = parser.parse_args()
    names = args.names or (CONTROLS if args.controls else list(PROGRAMS))
    found, seconds = run_battery(names, at_most=args.at_most, tier=args.tier, workers=args.workers)
    print(json.dumps({"seconds": seconds, "effects": found}, indent=1))


if __name__ == "__main__":
    main()
