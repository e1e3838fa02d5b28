"""A client of your own: Hugging Face's text-generation-inference, its streams and whole answers."""

from harness.clients.openai import OpenAIClient
from harness.judges.completion import Dialect, Stream, TokenEvent, Whole
from harness.judges.rule import body, json_object, need, request
from harness.sse import decode_events

NAMES = {"max_tokens": "max_new_tokens"} | {name: name for name in ("temperature", "seed", "stop")}


def asked(seen):
    sent = request(seen)["parameters"]
    named = {ours: sent[theirs] for ours, theirs in NAMES.items() if theirs in sent}
    return {"temperature": 0.0, **named, "prompt": request(seen)["inputs"]}


def read(seen):
    frames = [(e.arrival_ns, e.event.data.encode()) for e in decode_events(seen.chunks)]
    told = [(at_ns, json_object(frame, "frame")) for at_ns, frame in frames]
    need(bool(told) and bool(told[-1][1].get("details")), "the stream lacks its last frame")
    ended_ns, details = told[-1][0], told[-1][1]["details"]
    rows = [(at_ns, frame["token"]) for at_ns, frame in told]
    tokens = tuple(TokenEvent("" if t["special"] else t["text"], t["id"], at, t) for at, t in rows)
    usage = {"prompt_tokens": details["input_length"], "completion_tokens": len(tokens)}
    end = {"finish_reason": "length" if details["finish_reason"] == "length" else "stop"}
    return Stream(None, tokens, None, end, None, ended_ns, usage)


def whole(seen):
    return Whole(body(seen)["generated_text"], body(seen)["details"]["generated_tokens"])


class TGIClient(OpenAIClient):
    kind, ready_path = "tgi", "/health"
    dialects = dict.fromkeys(("/generate", "/generate_stream"), Dialect(asked, read, whole))

    def request(self, fields, *, stream):
        set_ = {theirs: fields[ours] for ours, theirs in NAMES.items() if fields.get(ours)}
        sent = {"inputs": fields["prompt"], "parameters": {**set_, "details": True}}
        return ("/generate_stream" if stream else "/generate"), sent
