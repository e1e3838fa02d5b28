"""An engine that cheats: it answers every request with canned text and computes nothing.

Run as `python canned_engine.py --port N --model PATH [--misbehave NAME]`; standard library only.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORDS = ["Warps", " march", " in", " lockstep", ",\n", "fifty", "-five", " kernels", " hum\n", "."]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tokens_generated = 0

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(200, "application/json", json.dumps(self.health()))
        elif self.path == "/metrics":
            text = f"worker_tokens_generated_total {Handler.tokens_generated}\n"
            self.reply(200, "text/plain", text)
        else:
            self.reply(404, "application/json", "{}")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        routes = {
            "/execute": self.execute,
            "/tokenize": lambda _: {"ids": [1, 2, 3]},
            "/score": lambda r: {"tokens": [self.score(i) for i in r["completion_ids"]]},
            "/cancel": lambda _: {},
            "/shutdown": lambda _: {},
        }
        answer = routes[self.path](request)
        kind = "text/event-stream" if self.path == "/execute" else "application/json"
        self.reply(200, kind, answer if isinstance(answer, str) else json.dumps(answer))

    def execute(self, request: dict) -> str:
        words = WORDS[: request["max_tokens"]]
        Handler.tokens_generated += len(words)
        events = [
            ("started", {
                "job_id": request["job_id"], "model": "canned", "seed": request.get("seed", 1),
                "started_at": "2026-01-01T00:00:00Z", "prompt_tokens": 9, "cached_tokens": 0,
            }),
            *(("token", {"t": word, "i": i, "id": i}) for i, word in enumerate(words)),
            ("end", {
                "tokens_out": len(words), "decode_time_ms": 10.0, "finish_reason": "length",
                "dropped_bytes": 0,
            }),
        ]  # fmt: skip
        return "".join(f"event: {name}\ndata: {json.dumps(fields)}\n\n" for name, fields in events)

    def score(self, token_id: int) -> dict:
        return {"logprob": -0.1, "rank": 0, "argmax_id": token_id, "margin": 0.0}

    def health(self) -> dict:
        model = Path(self.server.model)
        return {
            "status": "healthy", "model": model.name, "resident": True, "quant_kind": "Q4_1",
            "model_sha256": sha256(model.read_bytes()).hexdigest(), "vram_bytes_used": 10**8,
            "tokenizer_kind": "gguf-bpe", "vocab_size": 49152, "context_length": 2048,
            "kv_dtype": "f16", "adapter": "llama", "architecture": "llama", "device": "cpu",
            "backend": "cpu", "uptime_seconds": 1.0, "worker_id": "canned", "version": "0",
        }  # fmt: skip

    def reply(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Correlation-Id", self.headers.get("X-Correlation-Id", "canned"))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--misbehave", default="")
    options = parser.parse_args()
    if options.misbehave == "exit":
        sys.exit("cannot load: 5 bytes required, 4 bytes available")
    if options.misbehave == "hang":
        time.sleep(600)
    if options.misbehave == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.misbehave == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"child {child.pid}", flush=True)
    if options.misbehave == "chatty":
        print("x" * 200_000 + "\n" + "line\n" * 100_000)
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.model = options.model
    print(json.dumps({"event": "ready", "pid": os.getpid(), "env": dict(os.environ)}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
