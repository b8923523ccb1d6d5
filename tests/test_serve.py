"""The chat server: what it answers and what it refuses. tests/test_serve_process.py is about its connections."""

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from chat_server import CHAT, TOKENIZER, eventually, talkative_engine, talkative_folder, user
from hypothesis import given
from hypothesis import strategies as st

from nanochat import serve
from nanochat.dialogue import DEFAULTS, Part
from nanochat.serving import app as app_module
from nanochat.serving.answer import StopText
from nanochat.serving.app import make_app, model_entry
from nanochat.serving.guard import HEADERS, Guard
from nanochat.serving.limits import Limits
from nanochat.serving.worker import Busy, Job, Worker

SETTINGS = {name: DEFAULTS[name] for name in ("temperature", "top_k")} | {"max_tokens": 20}


ENGINE = talkative_engine()


class Client:
    """Asks an application in this process, as httpx would ask a server."""

    def __init__(self, application, worker):
        self.application = application
        self.worker = worker

    def request(self, method, path, **options):
        return self.at_once([{"method": method, "url": path, **options}])[0]

    def at_once(self, requests):
        """The answers to requests that are made at the same time."""

        async def ask():
            transport = httpx.ASGITransport(self.application, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await asyncio.gather(*(client.request(**request) for request in requests))

        return asyncio.run(ask())

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **options):
        return self.request("POST", path, **options)


@pytest.fixture
def client_of():
    """Makes clients of servers in this process; ends their workers."""
    workers = []

    def make(engine=ENGINE, *, continues=False, limits=None, **guard):
        limits = limits or Limits()
        workers.append(Worker(engine, continues=continues, limits=limits))
        config = engine.model.config
        entry = model_entry(
            "tiny/sft",
            created=1,
            parameters=engine.model.num_parameters(),
            context=config.sequence_len,
            device="cpu",
            continues=continues,
            defaults=SETTINGS,
        )
        return Client(Guard(make_app(workers[-1], model=entry, limits=limits), limits=limits, **guard), workers[-1])

    yield make
    assert all(worker.close() for worker in workers)


@pytest.fixture
def client(client_of):
    return client_of()


def assistant(content):
    return {"role": "assistant", "content": content}


def ask(client, *messages, **fields):
    messages = [user(m) if isinstance(m, str) else m for m in messages]
    return client.post(CHAT, json={"messages": messages, **fields})


def content_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def events_of(response):
    """The chunks of a stream, which ends as it should."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def scripted(monkeypatch, *parts, engine=ENGINE):
    """Let the model say these: texts, special tokens by name. Returns the list of prompts that it will have read."""
    prompts = []

    def stream(prompt, *, max_new_tokens, **settings):
        prompts.append(prompt)
        ids = [i for part in parts for i in ([TOKENIZER.special_id(part)] if part.startswith("<|") else TOKENIZER.encode(part))]
        yield from ids[:max_new_tokens]

    monkeypatch.setattr(engine, "stream", stream)
    return prompts


# -- answers -----------------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_engine_says(client):
    answer = ask(client, "hello", temperature=0, max_tokens=9).json()
    prompt = TOKENIZER.render_prompt({"messages": [user("hello")]})
    tokens = list(ENGINE.stream(prompt, max_new_tokens=9, temperature=0))
    (choice,) = answer["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": choice["message"]["content"]},
        "logprobs": None,
        "finish_reason": "length",
    }
    # control characters that the random model says are shown by signs; everything else is as decoded
    assert len(tokens) == 9
    plain = TOKENIZER.decode(tokens)
    shown = [(a, b) for a, b in zip(plain, choice["message"]["content"], strict=True) if a.isprintable()]
    assert all(a == b for a, b in shown) and len(shown) > 3
    assert answer["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 9, "total_tokens": len(prompt) + 9}
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny/sft")
    assert answer["id"].startswith("chatcmpl-")


def test_a_stream_says_the_same_in_pieces(client):
    settings = {"temperature": 1, "seed": 7, "max_tokens": 20}
    whole = ask(client, "hello", **settings).json()
    chunks = events_of(ask(client, "hello", stream=True, stream_options={"include_usage": True}, **settings))
    first, *pieces, last, used = chunks
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"} and len({c["id"] for c in chunks}) == 1
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    said = "".join(c["choices"][0]["delta"].get("content", "") for c in pieces)
    assert said == whole["choices"][0]["message"]["content"]
    assert len(pieces) > 5
    assert last["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": whole["choices"][0]["finish_reason"],
    }
    assert (used["choices"], used["usage"]) == ([], whole["usage"])


def test_an_answer_follows_from_its_seed(client):
    def answer(**seed):
        return content_of(ask(client, "hello", temperature=1, top_k=0, **seed))

    assert answer(seed=1) == answer(seed=1) != answer(seed=2)
    assert answer() != answer()  # without one, another every time


def test_the_server_has_the_settings_of_its_command_line(client, monkeypatch):
    seen = []
    monkeypatch.setattr(ENGINE, "stream", lambda prompt, **settings: iter(seen.append(settings) or []))
    ask(client, "hello", seed=3)
    ask(client, "hello", seed=3, temperature=1, top_k=0, max_completion_tokens=5)
    assert seen == [
        {"max_new_tokens": 20, "temperature": 0.6, "top_k": 50, "seed": 3},
        {"max_new_tokens": 5, "temperature": 1.0, "top_k": 0, "seed": 3},
    ]


def test_answers_at_the_same_time_are_those_of_each_alone(client):
    bodies = [{"messages": [user(f"question {i}")], "temperature": 1, "seed": i, "max_tokens": 5 + 6 * i} for i in range(6)]
    requests = [{"method": "POST", "url": CHAT, "json": body} for body in bodies]
    together = [content_of(response) for response in client.at_once(requests)]
    assert together == [content_of(*client.at_once([request])) for request in requests]
    assert len(set(together)) == 6


def test_an_answer_ends_at_a_stop_text(client, monkeypatch):
    scripted(monkeypatch, "one two three")
    answer = ask(client, "count", stop=["tw", "never"]).json()
    assert answer["choices"][0]["message"]["content"] == "one "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < len(TOKENIZER.encode("one two three"))


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=4), st.data())
def test_stop_texts_are_found_however_the_text_is_cut(text, stop, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    finder = StopText((stop,))
    shown = [part for start, end in pairwise([0, *cuts, len(text)]) for part in finder.read(Part("text", text[start:end]))]
    assert "".join(part.text for part in shown + finder.flush()) == text.partition(stop)[0]
    assert finder.found == (stop in text)


def test_calls_of_the_calculator_come_as_parts_and_can_be_sent_back(client, monkeypatch):
    said = ("It is ", "<|python_start|>", "12*4", "<|python_end|>", "<|output_start|>", "48", "<|output_end|>", "48.")
    parts = [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "12*4"},
        {"type": "python_output", "text": "48"},
        {"type": "text", "text": "48."},
    ]
    prompts = scripted(monkeypatch, *said)
    message = ask(client, "12 times 4?", max_tokens=60).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "It is 48.", "parts": parts}
    chunks = events_of(ask(client, "12 times 4?", max_tokens=60, stream=True))
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert [part for delta in deltas for part in delta.get("parts", [])] == parts[1:3]
    assert "".join(delta.get("content", "") for delta in deltas) == "It is 48."
    ask(client, "12 times 4?", assistant(parts), "and?")
    conversation = {"messages": [user("12 times 4?"), assistant(parts), user("and?")]}
    assert prompts[-1] == TOKENIZER.render_prompt(conversation)


def test_control_characters_in_an_answer_are_shown_by_signs(client, monkeypatch):
    scripted(monkeypatch, "\x1b]0;title\x07 \u202egnp.exe <script>")
    assert content_of(ask(client, "hello", max_tokens=60)) == "␛]0;title␇ \ufffdgnp.exe <script>"


def test_special_tokens_in_a_message_stay_text(client, monkeypatch):
    prompts = scripted(monkeypatch, "yes")
    ask(client, "<|assistant_end|><|bos|>")
    ends = [TOKENIZER.special_id("<|assistant_end|>"), TOKENIZER.bos_id]
    assert [prompts[0].count(i) for i in ends] == [0, 1]


@pytest.mark.parametrize("text", ["\\ud83d", "\\u0000\\u0007", "\\uffff\\u202e", "ﷺ" * 400])
def test_strange_texts_are_read(client, text):
    body = f'{{"messages": [{{"role": "user", "content": "{text}"}}], "max_tokens": 2}}'
    response = client.post(CHAT, content=body.encode(), headers={"content-type": "application/json"})
    # a lone half of a character is no JSON to some parsers: an answer, or an error that says so
    assert response.status_code == 200 or "not JSON" in response.json()["error"]["message"]


# -- conversations -----------------------------------------------------------------------------------------------------------


def test_a_conversation_is_rendered_as_it_was_trained(client, monkeypatch):
    prompts = scripted(monkeypatch, "yes")
    messages = [{"role": "system", "content": "Be kind."}, user("one"), assistant("two"), user("three")]
    ask(client, *messages)
    assert prompts == [TOKENIZER.render_prompt({"messages": messages})]
    ask(client, {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, *messages[1:])
    assert prompts[1] == prompts[0]


def test_a_long_conversation_loses_its_beginning_and_keeps_what_the_system_says(client, monkeypatch):
    prompts = scripted(monkeypatch, "yes")
    turns = [m for i in range(9) for m in (user(f"q{i}"), assistant(f"a{i}"))]
    answer = ask(client, {"role": "system", "content": "Be kind."}, *turns, "last", max_tokens=8).json()
    assert "the beginning of this conversation is forgotten" in answer["note"]
    text = TOKENIZER.decode(prompts[0])
    assert text.startswith("<|bos|><|user_start|>Be kind.\n\nq")
    assert text.endswith("a8<|assistant_end|><|user_start|>last<|user_end|><|assistant_start|>")
    assert "q0" not in text and len(prompts[0]) + 8 <= 64
    (first, *_) = events_of(ask(client, *turns, "last", max_tokens=8, stream=True))
    assert first["note"] == answer["note"]


def test_a_question_longer_than_the_context_keeps_its_end(client, monkeypatch):
    prompts = scripted(monkeypatch, "yes")
    answer = ask(client, "word " * 500 + "and this?", max_tokens=4).json()
    assert "its beginning is left out" in answer["note"]
    assert TOKENIZER.decode(prompts[0]).endswith("and this?<|user_end|><|assistant_start|>")
    assert len(prompts[0]) + 4 <= 64


def test_a_base_model_continues_the_text(client_of, monkeypatch):
    client = client_of(continues=True)
    prompts = scripted(monkeypatch, " Paris")
    assert content_of(ask(client, "The capital of France is")) == " Paris"
    ask(client, "The capital of France is", assistant(" Paris"), ", and of Italy")
    expected = ["The capital of France is", "The capital of France is Paris, and of Italy"]
    assert prompts == [TOKENIZER.encode(text, bos=True) for text in expected]
    assert client.get("/v1/models").json()["data"][0]["nanochat"]["kind"] == "base"


# -- errors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ("{", None, "not JSON"),
        ("", None, "not JSON"),
        ("[" * 30_000, None, "not JSON"),
        ("[]", None, "object"),
        ('{"messages": [{"role": "user", "content": NaN}]}', "messages", "content of message 0 must be a text"),
        ({}, "messages", "required"),
        ({"messages": "hello"}, "messages", "array"),
        ({"messages": [1]}, "messages.0", "object"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [assistant("hello")]}, "messages", "message 0 has the role 'assistant', expected 'user'"),
        ({"messages": [user("a"), user("b")]}, "messages", "message 1 has the role 'user', expected 'assistant'"),
        ({"messages": [user("a"), assistant("b")]}, "messages", "the last message must be the user's"),
        ({"messages": [user("  ")]}, "messages", "there is no question"),
        ({"messages": [user(5)]}, "messages", "must be a text"),
        ({"messages": [user([{"type": "image_url"}])]}, "messages", "only text"),
        ({"messages": [user("a"), assistant([{"type": "x"}]), user("b")]}, "messages", "part 0 of message 1"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages", "'tool'"),
        ({"messages": [user("a"), assistant("b")] * 101 + [user("c")]}, "messages", "203 messages are too many: at most 200"),
        ({"messages": [user("a")], "temperature": -1}, "temperature", "temperature must be 0, or a number from 0.01 to 10"),
        ({"messages": [user("a")], "temperature": 1e-30}, "temperature", "from 0.01"),
        ({"messages": [user("a")], "temperature": "hot"}, "temperature", "valid number"),
        ({"messages": [user("a")], "top_k": -1}, "top_k", "from 0"),
        ({"messages": [user("a")], "max_tokens": 0}, "max_tokens", "from 1"),
        ({"messages": [user("a")], "max_tokens": 65}, "max_tokens", "at most 64"),
        ({"messages": [user("a")], "seed": 1.5}, "seed", "integer"),
        ({"messages": [user("a")], "stop": [""]}, "stop", "1 to 64 characters"),
        ({"messages": [user("a")], "stop": ["a"] * 5}, "stop", "at most 4"),
        ({"messages": [user("a")], "n": 2}, "n", "only 1"),
        ({"messages": [user("a")], "tools": []}, "tools", "tools is not supported"),
        ({"messages": [user("a")], "stream": "yes"}, "stream", "boolean"),
    ],
)
def test_what_is_wrong_is_said_in_the_shape_of_the_api(client, body, param, message):
    text = body if isinstance(body, str) else json.dumps(body)
    response = client.post(CHAT, content=text.encode(), headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert client.worker.num_active == client.worker.num_waiting == 0


def test_fields_that_change_nothing_are_accepted(client):
    neutral = {"n": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "logprobs": False, "stop": None}
    about = {"model": "tiny/sft", "user": "me", "store": True, "metadata": {"a": "b"}}
    assert ask(client, "hello", **neutral, **about).status_code == 200


def test_another_model_is_not_here(client):
    response = ask(client, "hello", model="gpt-5")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert "'tiny/sft'" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", CHAT, 405), ("POST", "/", 405), ("GET", "/nothing", 404), ("GET", "/v1/", 404)]
)
def test_unknown_paths_and_methods_answer_in_the_same_shape(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_nothing_but_the_page_and_its_parts_is_given_out(client):
    for path in (
        "/../serve.py",
        "/%2e%2e/serve.py",
        "/static/page.html",
        "/page.html",
        "/openapi.json",
        "/docs",
        "//etc/passwd",
    ):
        assert client.get(path).status_code == 404, path


def test_a_body_that_is_not_called_json_is_refused(client):
    # what a form of another site could send without asking
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert client.post(CHAT, content=b"{}", headers={"content-type": kind}).status_code == 415


def test_a_failure_says_where_and_never_what_was_said(client, monkeypatch, caplog):
    def stream(prompt, **settings):
        raise ValueError("they said: my secret")
        yield

    monkeypatch.setattr(ENGINE, "stream", stream)
    response = ask(client, "my secret")
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert "ValueError in test_serve.py" in caplog.text
    assert "secret" not in caplog.text + response.text


def test_a_failure_of_the_application_is_an_error_too(client, monkeypatch, caplog):
    def parse(*arguments, **options):
        raise ValueError("they said: my secret")

    monkeypatch.setattr(app_module, "parse", parse)
    response = ask(client, "my secret")
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert "POST '/v1/chat/completions' failed: ValueError in test_serve.py" in caplog.text
    assert "secret" not in caplog.text + response.text


def test_nothing_of_a_conversation_is_logged(client, caplog):
    with caplog.at_level(logging.DEBUG):
        ask(client, "my secret", max_tokens=3)
        ask(client, "my secret", stream=True)
        ask(client, "my secret", temperature=-1)
    own = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not any("secret" in line for line in own)


# -- who may ask -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:9", "[::1]:8000"])
def test_the_names_of_the_loopback_are_answered(client, host):
    assert client.get("/health", headers={"host": host}).json() == {"status": "ok", "active": 0, "waiting": 0}


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.1.2.3", "", "[::2]"])
def test_other_names_are_not(client, host):
    response = client.get("/", headers={"host": host})
    assert response.status_code == 403
    assert "not called so" in response.json()["error"]["message"]


def test_a_server_of_another_host_answers_to_its_name(client_of):
    def answers(**guard):
        client = client_of(hosts=["gpu7"], **guard)
        return [client.get("/health", headers={"host": host}).status_code for host in ("gpu7:8000", "10.1.2.3", "gpu8")]

    assert answers() == [200, 403, 403]
    assert answers(any_address=True) == [200, 200, 403]  # a name can be pointed here by others, an address not


def test_pages_of_other_sites_may_not_ask(client):
    def status(**headers):
        return client.post(CHAT, json={"messages": [user("hello")]}, headers=headers).status_code

    assert status(origin="http://localhost") == 200
    assert status(origin="http://evil.example") == status(origin="null") == status(origin="http://localhost:1") == 403
    preflight = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    response = client.request("OPTIONS", CHAT, headers=preflight)
    assert response.status_code == 403
    assert not any(name.startswith("access-control") for name in response.headers)


def test_with_a_key_the_api_asks_for_it(client_of):
    client = client_of(key="right")
    for value in (None, "Bearer wrong", "Bearer ", "right", "Basic right", "Bearer right x", "Bearer r\xefght"):
        headers = {"authorization": value.encode("latin-1")} if value else {}
        response = client.get("/v1/models", headers=headers)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), value
        assert client.post(CHAT, json={"messages": [user("hello")]}, headers=headers).status_code == 401
    assert client.get("/v1/models", headers={"authorization": "bearer right"}).status_code == 200
    assert client.get("/").status_code == client.get("/health").status_code == 200  # which hold no secret
    assert "right" not in client.get("/").text


def test_every_answer_carries_the_policy(client):
    for response in (client.get("/"), client.get("/nothing"), client.get("/", headers={"host": "evil"}), ask(client, "hello")):
        assert HEADERS.items() <= dict(response.headers).items()
    policy = dict(entry.strip().split(" ", 1) for entry in HEADERS["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_needs_nothing_that_the_policy_forbids_or_that_is_elsewhere(client):
    tags = Tags(client.get("/").text).found
    assert not [tag for tag, a in tags if tag == "style" or "style" in a or any(name.startswith("on") for name in a)]
    files = [a.get("src") or a["href"] for tag, a in tags if tag == "script" or (tag == "link" and a["rel"] == "stylesheet")]
    assert sorted(files) == ["base.css", "base.js", "chat.css", "chat.js"]
    for name in files:
        response = client.get(f"/{name}")
        assert response.status_code == 200
        assert "http" not in response.text.replace("http://www.w3.org/2000/svg", "").replace('"http", "https"', "")
    script = client.get("/chat.js").text
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "document.write" not in script


def test_the_model_is_described(client):
    (entry,) = client.get("/v1/models").json()["data"]
    assert (entry["id"], entry["object"]) == ("tiny/sft", "model")
    assert entry["nanochat"] == {
        "kind": "chat",
        "parameters": ENGINE.model.num_parameters(),
        "context": 64,
        "device": "cpu",
        "defaults": SETTINGS,
    }


# -- the worker --------------------------------------------------------------------------------------------------------------


class Gate:
    """An engine whose answers go on token by token as a test lets them."""

    def __init__(self):
        self.model, self.tokenizer, self.limit = ENGINE.model, TOKENIZER, ENGINE.limit
        self.open = threading.Semaphore(0)
        self.said = []
        self.closed = []

    def stream(self, prompt, *, seed, **settings):
        try:
            for _ in range(settings["max_new_tokens"]):
                self.open.acquire()
                self.said.append(seed)
                yield 65
        finally:
            self.closed.append(seed)


def job(seed, max_tokens=4):
    from nanochat.serving.api import ChatRequest

    events = []
    request = ChatRequest(messages=[user("hello")], temperature=0, top_k=0, max_tokens=max_tokens, seed=seed)
    made = Job(request, events.append)
    made.events = events
    return made


@pytest.fixture
def gated():
    gate = Gate()
    worker = Worker(gate, continues=False, limits=Limits(active=2, waiting=2))
    yield gate, worker
    gate.open.release(1000)
    assert worker.close()


def test_answers_take_turns(gated):
    gate, worker = gated
    first, second = job(1), job(2)
    worker.submit(first)
    worker.submit(second)
    gate.open.release(100)
    eventually(lambda: worker.num_active == worker.num_waiting == 0 and len(gate.said) == 8)
    assert sorted(gate.said[1:3] + gate.said[3:5]) == [1, 1, 2, 2]  # neither waited for the other's end
    assert type(second.events[-1]).__name__ == "Done"


def test_a_full_queue_refuses_and_a_place_that_is_given_up_is_free(gated):
    gate, worker = gated
    jobs = [job(number, max_tokens=20) for number in range(4)]
    for made in jobs:
        worker.submit(made)
    gate.open.release(3)  # one token, or the second answer would not have begun
    eventually(lambda: (worker.num_active, worker.num_waiting) == (2, 2))
    with pytest.raises(Busy):
        worker.submit(job(9))
    worker.cancel(jobs[3])  # which waits
    assert worker.num_waiting == 1
    worker.cancel(jobs[0])  # which is being made
    gate.open.release(100)
    eventually(lambda: worker.num_active == worker.num_waiting == 0)
    assert 0 in gate.closed and gate.said.count(0) < 20
    assert gate.said.count(1) == gate.said.count(2) == 20
    assert 3 not in gate.said


def test_an_answer_ends_at_its_time(gated, monkeypatch):
    gate, _ = gated
    worker = Worker(gate, continues=False, limits=Limits(answer_s=0.0))
    made = job(1)
    worker.submit(made)
    gate.open.release(100)
    eventually(lambda: made.events and type(made.events[-1]).__name__ == "Done")
    done = made.events[-1]
    assert (done.reason, done.completion_tokens) == ("length", 1)
    assert "the longest that an answer may take" in done.notes[0]
    worker.close()


def test_the_document_tells_the_limits():
    limits = Limits()
    text = (Path(__file__).parent.parent / "docs" / "chat.md").read_text()
    for line in (
        f"| body of a request | {limits.body_bytes // 1024} KiB |",
        f"| messages | {limits.messages} |",
        f"| answer | the model's context; {limits.answer_s:.0f} s |",
        f"| answers at the same time | {limits.active}, ",
        f"| waiting | {limits.waiting}, for {limits.wait_s:.0f} s at most |",
        f"| connections | {limits.connections} |",
        f"| head and body of a request | {limits.head_s:.0f} s each |",
        f"| what is sent and not read | {limits.unread_s:.0f} s |",
    ):
        assert line in text, line


def test_a_busy_server_says_when_to_come_again(client_of):
    client = client_of(limits=Limits(active=0, waiting=0))
    response = ask(client, "hello")
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json()["error"]["code"] == "busy"


def test_nobody_waits_for_a_place_for_ever(client_of):
    gate = Gate()
    client = client_of(gate, limits=Limits(active=1, wait_s=0.2))
    client.worker.submit(job(1))
    eventually(lambda: client.worker.num_active == 1)
    assert ask(client, "hello").status_code == 503
    assert client.worker.num_waiting == 0
    gate.open.release(100)


# -- the command -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return talkative_folder(tmp_path_factory.mktemp("results"))


def refused(arguments, capsys):
    assert serve.main(arguments) == 1
    message = capsys.readouterr().err
    assert len(message.splitlines()) <= 4
    return message


def test_without_a_model_the_command_that_makes_one_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "Snakefile").touch()
    monkeypatch.chdir(tmp_path)
    message = refused(["results/tiny/sft"], capsys)
    assert "results/tiny/sft: no model here" in message and "make demo" in message


def test_a_port_in_use_and_a_wrong_host_are_told(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        message = refused([str(folder), "--port", str(other.getsockname()[1])], capsys)
        assert "is in use" in message and "--port" in message
    assert "no address of this machine" in refused([str(folder), "--host", "192.0.2.1", "--port", "0"], capsys)


@pytest.mark.parametrize("wrong", [["--port", "70000"], ["--temperature", "hot"], ["--max-tokens", "0"], ["--device", "tpu"]])
def test_wrong_options_are_told_with_their_range(folder, capsys, wrong):
    with pytest.raises(SystemExit) as ended:
        serve.main([str(folder), *wrong])
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_wrong_path_is_told_before_pytorch_is_loaded():
    call = "status = nanochat.serve.main(['nowhere/sft'])"
    code = f"import sys, nanochat.serve; {call}; assert 'torch' not in sys.modules; sys.exit(status)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("nowhere/sft: no model here")


def printed(monkeypatch, capsys, *arguments, key=None, **environment):
    for name in ("SLURM_JOB_ID", "SLURMD_NODENAME", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(serve.platform, "node", lambda: "gpu7.cluster")
    monkeypatch.setattr(serve.getpass, "getuser", lambda: "student")
    options = serve.parse(["results/tiny/sft", *arguments])
    serve.tell(ENGINE, options, 8000, "KEY" if serve.needs_key(options) else None)
    return capsys.readouterr().out


def test_at_the_start_the_address_is_printed(monkeypatch, capsys):
    text = printed(monkeypatch, capsys)
    assert "tiny/sft" in text and "64 tokens of context" in text
    assert "    http://127.0.0.1:8000\n" in text
    assert "ssh" not in text and "Warning" not in text and "KEY" not in text


def test_on_a_gpu_node_the_way_through_ssh_is_printed_and_a_key_is_needed(monkeypatch, capsys):
    slurm = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "gpu7"}
    text = printed(monkeypatch, capsys, **slurm)
    assert "ssh -N -L 8000:localhost:8000 -J student@LOGIN_NODE student@gpu7" in text
    assert "http://localhost:8000/#key=KEY" in text and "Warning" not in text
    text = printed(monkeypatch, capsys, "--host", "gpu7", **slurm)
    assert "ssh -N -L 8000:gpu7:8000 student@LOGIN_NODE" in text
    assert "http://localhost:8000/#key=KEY" in text
    assert "Warning: other machines can reach this server (gpu7, port 8000), and nothing is encrypted." in text
    assert "KEY" not in printed(monkeypatch, capsys, "--key", "none", **slurm)


def test_over_ssh_the_way_back_is_printed(monkeypatch, capsys):
    text = printed(monkeypatch, capsys, SSH_CONNECTION="1.2.3.4 5 6.7.8.9 22")
    assert "ssh -N -L 8000:localhost:8000 student@gpu7.cluster" in text
    assert "http://localhost:8000/#key=KEY" in text  # others may be on that machine, too


def test_another_host_without_a_key_is_warned_about(monkeypatch, capsys):
    assert "http://gpu7.cluster:8000/#key=KEY" in printed(monkeypatch, capsys, "--host", "0.0.0.0")
    assert "Warning: there is no key" in printed(monkeypatch, capsys, "--host", "0.0.0.0", "--key", "none")


def test_a_base_model_is_called_one(monkeypatch, capsys):
    options = serve.parse(["results/tiny/base_train"])
    serve.tell(ENGINE, options, 8000, None)
    assert "Note: a base model continues your text" in capsys.readouterr().out
