"""Saboteurs that tell a test from a client by what a request asks for, not by its words."""

from starlette.responses import Response, StreamingResponse

from harness.saboteurs.moments import CheatsLater
from harness.saboteurs.proxy import Body, Events, Saboteur

USUAL_TEMPERATURES = (0.6, 1.1)
USUAL_LOGPROBS = 5


class HonestOnProbes(CheatsLater):
    """Honest where a request has what probes need and clients seldom ask for."""

    name = "honest-on-odd-requests"
    cheat = "honest only on prompts that came before, stops, token ids, odd temperatures, logprobs"
    caught_by = "G4-GENUINE-RESCORE"

    def __init__(self) -> None:
        super().__init__()
        self.prompts: set[str] = set()

    def honest(self, body: Body) -> bool:
        """By its fields, and by whether its prompt is new."""
        prompt, heat = str(body.get("prompt")), body.get("temperature", 1.0)
        known = prompt in self.prompts
        self.prompts.add(prompt)
        low, high = USUAL_TEMPERATURES
        odd = 0 < heat < low or heat > high or body.get("logprobs", 0) > USUAL_LOGPROBS
        return known or odd or "stop" in body or "prompt_ids" in body


class CheatsUnderLoad(CheatsLater):
    """Saves work where requests come at once: one alone is answered honestly."""

    name = "cheats-under-load"
    cheat = "drops a quarter of the prompt of every request that comes while another runs"
    caught_by = "G4-GENUINE-RESCORE"

    def __init__(self) -> None:
        super().__init__()
        self.running = 0

    def honest(self, body: Body) -> bool:
        """Alone."""
        return self.running == 1

    async def execute(self, body: Body, headers: dict[str, str]) -> Response:
        """Count what runs, from its arrival."""
        self.running += 1
        answer = await super().execute(body, headers)
        self.running -= not isinstance(answer, StreamingResponse)
        return answer

    async def events(self, body: Body, events: Events) -> Events:
        """To its end."""
        try:
            async for event in events:
                yield event
        finally:
            self.running -= 1


class CapsTemperature(Saboteur):
    """Samples honestly at the temperatures that clients ask for."""

    name = "caps-temperature"
    cheat = f"samples at temperature {USUAL_TEMPERATURES[1]} where a higher one is asked for"
    caught_by = "G4-GENUINE-RESCORE"

    async def request(self, body: Body) -> Body:
        """No higher one."""
        asked = body.get("temperature", 1.0)
        return {**body, "temperature": min(asked, USUAL_TEMPERATURES[1])}
