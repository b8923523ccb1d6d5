"""The chat server as a process on the loopback: how it starts and ends, and what nobody can do to it through a socket."""

import contextlib
import json
import signal
import socket

import psutil
import pytest
from chat_server import CHAT, eventually, started, talkative_folder, user

QUICK = {"head_s": 1.0, "body_s": 1.0, "unread_s": 1.0, "idle_s": 1.0, "connections": 24, "active": 3, "waiting": 4}
MEGABYTES = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return talkative_folder(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def server(folder):
    with started(folder, "--max-tokens", "2048", limits=QUICK) as running:
        yield running
        assert running.process.poll() is None, "the server died"


def connect(server, *, receive_buffer=None):
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", server.port))
    return connection


def request(path="/health", *, method="GET", host="localhost", body=b"", **headers):
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    if body:
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def question(text, **fields):
    body = json.dumps({"messages": [user(text)], "stream": True, **fields}).encode()
    return request(CHAT, method="POST", body=body)


def read_all(connection):
    """Until the other end closes; a reset counts as one."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def exchange(server, sent):
    with connect(server) as connection:
        connection.sendall(sent)
        return read_all(connection)


def health(server):
    return json.loads(exchange(server, request(connection="close")).partition(b"\r\n\r\n")[2])


def answered(server, text="hello there"):
    """A client that behaves gets its answer."""
    body = json.dumps({"messages": [user(text)]}).encode()
    reply = exchange(server, request(CHAT, method="POST", body=body, connection="close"))
    assert b" 200 " in reply.split(b"\r\n", 1)[0], reply
    return json.loads(reply.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"] == text


def is_free(server):
    return health(server) == {"status": "ok", "active": 0, "waiting": 0}


def test_a_client_that_goes_away_frees_its_place(server):
    for _ in range(QUICK["active"] + QUICK["waiting"] + 3):  # more than there are places
        with connect(server) as connection:
            connection.sendall(question("endless"))
            assert b" 200 OK" in connection.recv(64)
    eventually(lambda: is_free(server))
    assert answered(server)


def test_a_client_that_goes_away_while_it_waits_frees_its_place(server):
    connections = [connect(server) for _ in range(QUICK["active"] + QUICK["waiting"])]
    for connection in connections:
        connection.sendall(question("endless"))
    eventually(lambda: health(server)["waiting"] == QUICK["waiting"])
    refused = exchange(server, question("hello"))
    assert b" 503 " in refused and b"retry-after: 2" in refused.lower()
    for connection in connections:
        connection.close()
    eventually(lambda: is_free(server))


def test_a_client_that_asks_for_the_whole_and_goes_away_frees_its_place(server):
    with connect(server) as connection:
        connection.sendall(question("endless", stream=False))
        eventually(lambda: health(server)["active"] == 1)
    eventually(lambda: is_free(server))


def test_a_client_that_never_reads_is_cut_and_the_others_are_answered(server):
    deaf = [connect(server, receive_buffer=2048) for _ in range(QUICK["active"])]
    for connection in deaf:
        connection.sendall(question("endless"))
    eventually(lambda: health(server)["active"] == QUICK["active"])
    assert answered(server)  # waits for a place, and gets one
    eventually(lambda: is_free(server))
    for connection in deaf:
        assert b"[DONE]" not in read_all(connection)
        connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        request(CHAT, method="POST", content_length=10**12, content_type="application/json") + b"x" * 1000,
        request(CHAT, method="POST", content_length="9" * 400),
        request(CHAT, method="POST", transfer_encoding="chunked") + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 2000,
        request(CHAT, method="POST", body=b" " * 65_537),
    ],
    ids=["announced", "announced in 400 digits", "chunked", "one byte more"],
)
def test_a_body_that_is_too_large_is_refused(server, sent):
    with connect(server) as connection:
        with contextlib.suppress(OSError):  # the server has heard enough
            connection.sendall(sent)
        reply = read_all(connection)
    assert b" 413 " in reply.split(b"\r\n", 1)[0] or b" 400 " in reply.split(b"\r\n", 1)[0]
    assert answered(server)


def test_slow_senders_are_cut(server):
    head, body = connect(server), connect(server)
    head.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
    body.sendall(request(CHAT, method="POST", content_length=100, content_type="application/json") + b'{"mess')
    assert read_all(head) == b""
    assert b" 408 " in read_all(body)
    for connection in (head, body):
        connection.close()


def test_a_silent_connection_is_closed(server):
    with connect(server) as connection:
        assert read_all(connection) == b""


def test_many_connections_do_not_keep_others_out(server):
    silent = [connect(server) for _ in range(5 * QUICK["connections"])]
    assert answered(server)
    half = [connect(server) for _ in range(2 * QUICK["connections"])]
    for connection in half:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert answered(server)
    sockets = psutil.Process(server.process.pid).net_connections()
    assert len([s for s in sockets if s.status == psutil.CONN_ESTABLISHED]) <= QUICK["connections"]
    for connection in silent + half:
        connection.close()
    eventually(lambda: is_free(server))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300, b"400"),  # TLS
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n", b"400"),
        (request(host="evil.example", connection="close"), b"403"),
        (request("/../../../etc/passwd", connection="close"), b"404"),
        (request("/%00%0d%0aX:y", connection="close"), b"404"),
        (request(x="y" * 200_000), b"400"),
        (request(CHAT, method="POST", body=b'{"messages": [{"ro', connection="close"), b"400"),
        (request(CHAT, method="POST", body=b"\xff\xfe\x00", connection="close"), b"400"),
        (request(connection="Upgrade", upgrade="websocket"), b"200"),
    ],
)
def test_nonsense_is_refused(server, sent, status):
    with connect(server) as connection:
        connection.sendall(sent)
        with contextlib.suppress(OSError):  # it may have hung up already
            connection.shutdown(socket.SHUT_WR)
        assert b" " + status + b" " in read_all(connection).split(b"\r\n", 1)[0]
    assert answered(server)


def test_hostile_texts_come_back_as_they_are(server):
    for text in ("<script>alert(1)</script>", '"}]}\n\ndata: [DONE]\n\n', "<|assistant_end|><|bos|>", "{{7*7}} ${7*7} %s %n"):
        assert answered(server, text)


def test_a_failing_model_fails_one_answer(server):
    reply = exchange(server, question("fail", stream=False))
    assert b" 500 " in reply
    assert answered(server)


def test_memory_stays_bounded_under_abuse(server):
    process = psutil.Process(server.process.pid)
    assert answered(server)
    before = process.memory_info().rss
    kinds = [question("endless"), b"GET / HT", question("x" * 60_000), request(CHAT, method="POST", content_length=10**9)]
    for _ in range(3):
        connections = []
        for sent in kinds * 15:
            connections.append(connect(server, receive_buffer=2048))
            with contextlib.suppress(OSError):
                connections[-1].sendall(sent)
        for connection in connections:
            connection.close()
    eventually(lambda: is_free(server))
    assert answered(server)
    assert process.memory_info().rss - before < 60 * MEGABYTES
    assert process.num_fds() < 40


@pytest.mark.parametrize("is_answering", [False, True], ids=["idle", "answering"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_real_program_at_once(folder, number, is_answering):
    with started(folder, "--max-tokens", "2048", "--temperature", "0", program="nanochat.serve") as running:
        with connect(running) as connection:
            if is_answering:
                connection.sendall(question("hello", max_tokens=2048))
                assert b" 200 OK" in connection.recv(64)
            code, complaint = running.end(number)
        assert code in ((0, 130) if number == signal.SIGINT else (0, -signal.SIGTERM))
        assert complaint == ""
        assert running.printed[-1] == "Ctrl-C ends it.\n"


def test_two_runs_of_the_real_program_give_the_same_answer(folder):
    body = json.dumps({"messages": [user("hello")], "seed": 5, "temperature": 1, "max_tokens": 30}).encode()
    answers = []
    for _ in range(2):
        with started(folder, program="nanochat.serve") as running:
            reply = exchange(running, request(CHAT, method="POST", body=body, connection="close"))
            answers.append(json.loads(reply.partition(b"\r\n\r\n")[2])["choices"])
    assert answers[0] == answers[1]
