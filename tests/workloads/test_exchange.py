import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.workloads._load.exchange import Broken, Connection


class Wire:
    """Stands for the socket: takes everything, gives the pieces one by one, then the end."""

    def __init__(self, pieces):
        self.pieces = list(pieces)

    def send(self, data):
        return len(data)

    def recv(self, size):
        return self.pieces.pop(0) if self.pieces else b""

    def close(self):
        pass


def connection(pieces):
    one = Connection.__new__(Connection)
    one._sock, one._asked = Wire(pieces), 0
    one.ask(b"POST", collect=True)
    return one


def read(pieces):
    """The answer of a stream that comes in these pieces, each a second after the other."""
    one = connection(pieces)
    for now in range(len(pieces) + 1):
        if one.read(float(now)):
            return one
    raise AssertionError("never complete")


def event(text=None, **fields):
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": None, "token_ids": [len(text)]}]
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = [
    b": a comment\n\n",
    event("a"),
    event("bc"),
    event(""),
    event(usage={"prompt_tokens": 7, "completion_tokens": 3}),
    b"data: [DONE]\n\n",
]


def chunked(parts):
    return HEAD + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@given(st.data())
def test_however_the_bytes_are_cut_the_answer_is_the_same(data):
    body = b"".join(EVENTS)
    inner = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=8)))
    stream = chunked(body[start:stop] for start, stop in zip([0, *inner], [*inner, len(body)], strict=True))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=8)))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    one = read(pieces)
    assert (one.answer.prompt_tokens, one.answer.output_tokens) == (7, 3)
    assert "".join(one.answer.texts) == "abc"
    assert one.answer.ids == [1, 2, 0]
    assert len(one.answer.times) == 3
    assert one.answer.times == sorted(one.answer.times)
    assert one.answer.done
    assert one.reusable


def test_each_event_has_the_moment_it_was_read():
    whole = chunked([event("a"), event("b")])
    cut = whole.index(b'"b"') - 40
    assert read([whole[:cut], whole[cut:]]).answer.times == [0.0, 1.0]


def test_a_body_of_known_length_and_one_that_ends_with_the_connection():
    body = b"".join(EVENTS)
    known = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    assert read([known]).answer.output_tokens == 3
    ended = read([b"HTTP/1.1 200 OK\r\n\r\n" + body])
    assert ended.answer.output_tokens == 3
    assert not ended.reusable


def test_the_role_alone_is_no_token():
    def chat(delta):
        return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"

    answer = read([chunked([chat({"role": "assistant", "content": ""}), chat({"content": "a"}), chat({"content": ""})])]).answer
    assert len(answer.times) == 2


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "closed the connection before the answer was complete"),
        (HEAD + b"5\r\nab", "closed the connection before"),
        (b"SSH-2.0 hello\r\n\r\n", "does not speak HTTP"),
        (HEAD + b"zz\r\nab\r\n", "chunked encoding is broken"),
        (chunked([b"data: {nonsense\n\n"]), "not JSON"),
        (chunked([b'data: {"error": {"message": "no room"}}\n\n']), "streamed an error: .*no room"),
        (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 9\r\n\r\ntoo long!", "HTTP 400: too long!"),
        (b"x" * 70000, "no end of its header"),
    ],
)
def test_what_cannot_be_used_says_why(stream, message):
    one = connection([stream] if stream else [])
    with pytest.raises(Broken, match=message):
        for now in range(3):
            one.read(float(now))
