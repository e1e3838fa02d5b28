"""Saboteurs that read another prompt than the one they were given, or spoil its text."""

from harness.saboteurs.proxy import Body, Events, Saboteur
from harness.saboteurs.stream_shape import changed

KEPT_CHARS = 600
KEPT_IDS = 160


class SilentTruncation(Saboteur):
    """Keeps only the end of long prompts."""

    name = "silent-truncation"
    cheat = f"silently drops all but the last {KEPT_CHARS} characters of a long prompt"
    caught_by = "G4-GENUINE-CONTEXT"

    async def request(self, body: Body) -> Body:
        """The tail only."""
        if isinstance(body.get("prompt"), str):
            return {**body, "prompt": body["prompt"][-KEPT_CHARS:]}
        if "prompt_ids" in body:
            return {**body, "prompt_ids": body["prompt_ids"][-KEPT_IDS:]}
        return body

    async def events(self, body: Body, events: Events) -> Events:
        """Report the length that was asked."""
        asked = {"text": body.get("prompt", ""), "add_special": True}
        n = len(body.get("prompt_ids") or (await self.post("/tokenize", asked))["ids"])
        async for event in events:
            shown = event.type == "started" and "messages" not in body
            yield changed(event, prompt_tokens=n) if shown else event


class DropsLastId(Saboteur):
    """Reads prompts of token ids only almost to their end."""

    name = "drops-last-id"
    cheat = "drops the last token of every prompt that is given as token ids"
    caught_by = "G4-GENUINE-PREFIX"

    async def request(self, body: Body) -> Body:
        """One id less."""
        if len(body.get("prompt_ids") or []) > 1:
            return {**body, "prompt_ids": body["prompt_ids"][:-1]}
        return body


class WrongBos(Saboteur):
    """Puts a token before each prompt that the model was not trained to see there."""

    name = "wrong-bos"
    cheat = "prepends a wrong beginning-of-sequence token to every prompt"
    caught_by = "G4-GENUINE-RESCORE"
    bos_id = 0

    async def request(self, body: Body) -> Body:
        """One more token in front."""
        if isinstance(body.get("prompt"), str):
            asked = {"text": body["prompt"], "add_special": True}
            ids = (await self.post("/tokenize", asked))["ids"]
            kept = {k: v for k, v in body.items() if k != "prompt"}
            return {**kept, "prompt_ids": [self.bos_id, *ids]}
        if "prompt_ids" in body:
            return {**body, "prompt_ids": [self.bos_id, *body["prompt_ids"]]}
        return body


class WrongTemplate(Saboteur):
    """Renders conversations with a template of its own."""

    name = "wrong-template"
    cheat = "renders chat messages as plain 'role: text' lines instead of the model's template"
    caught_by = "G4-GENUINE-RESCORE"

    async def request(self, body: Body) -> Body:
        """Plain lines."""
        if "messages" not in body:
            return body
        lines = [f"{m['role']}: {m['content']}" for m in body["messages"]]
        kept = {k: v for k, v in body.items() if k != "messages"}
        return {**kept, "prompt": "\n".join([*lines, "assistant:"])}


class LossyUtf8(Saboteur):
    """Decodes each token by itself."""

    name = "lossy-utf8"
    cheat = "decodes token by token: characters split over tokens become U+FFFD"
    caught_by = "G4-UTF8-NOREPLACEMENT"

    async def events(self, body: Body, events: Events) -> Events:
        """A replacement character where a character was still pending."""
        async for event in events:
            if event.type == "token" and event.body["t"] == "":
                event = changed(event, t="\ufffd")
            yield event


class LeaksPromptOnPartial(Saboteur):
    """Fills the gap of a pending character with prompt text."""

    name = "leaks-prompt-on-partial"
    cheat = "emits the prompt's first characters while bytes of a character are pending"
    caught_by = "G4-UTF8-STREAM-EQUALS-FULL"

    async def events(self, body: Body, events: Events) -> Events:
        """Prompt text in place of nothing."""
        prompt = body.get("prompt") or "prompt"
        async for event in events:
            if event.type == "token" and event.body["t"] == "":
                event = changed(event, t=prompt[:8])
            yield event
