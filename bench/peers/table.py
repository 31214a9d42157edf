"""The table of a run: medians of the rounds, and pelton's rate over the peer's."""

import json
from pathlib import Path
from statistics import median

# The load that the last column is worked out for.
USERS, PROMPT_TOKENS, GENERATED_TOKENS = 32, 512, 128


# Between these a document has its table.
BEGIN, END = "<!-- table begins -->", "<!-- table ends -->"


def print_table(run: Path, markdown: bool = False, into: Path | None = None) -> None:
    text = text_of(run, markdown)
    if into is None:
        print(text)
        return
    if not markdown:
        raise SystemExit("--into needs --markdown")
    document = into.read_text()
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise SystemExit(f"{into} must have one {BEGIN} and one {END}")
    before, after = document.split(BEGIN)[0], document.split(END)[1]
    into.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def text_of(run: Path, markdown: bool) -> str:
    facts = json.loads((run / "run.json").read_text())
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    parts = ["\n".join(machine(facts, markdown))]
    for weights in dict.fromkeys(row["weights"] for row in rows):
        parts.append(f"{'### ' if markdown else ''}{weights}")
        parts.append("\n".join(formatted(table([row for row in rows if row["weights"] == weights], facts, weights), markdown)))
    return "\n\n".join(parts)


def machine(facts: dict, markdown: bool) -> list[str]:
    host, cpu = facts["machine"], facts["machine"]["cpu"]
    lines = [f"{facts['date']}, revision {facts['revision']}, {facts['seconds'] / 60:.0f} minutes, {facts['threads']} threads for everyone."]
    if cpu:
        flags = ", ".join(name for name, there in cpu["flags"].items() if there)
        lines.append(f"Machine: {cpu['model']}, {cpu['cores']} cores, {flags}; {host['memory_bytes'] / 2**30:.0f} GiB, "
                     f"reads {median(host['memory_read_bytes_per_s']) / 1e9:.1f} GB/s; Linux {host['kernel']}, Python {host['python']}.")
    lines.append(f"Model: {facts['checkpoint']}; {facts['prompt_tokens']} tokens of prompt, {facts['steps']} counted decode steps.")
    lines.append(f"Command: `{facts['command']}`")
    lines += [f"pelton, {weights}: `{about['command']}`" for weights, about in facts["pelton"].items()]
    return [f"- {line}" for line in lines] if markdown else lines


def table(rows: list[dict], facts: dict, weights: str) -> list[list[str]]:
    """Header and rows of one kind of weights; a reason stands in place of rates."""
    keys = ["prefill", *facts["batch"]]
    header = ["tokens/s", f"prefill of {facts['prompt_tokens']}", *(f"decode, batch {batch}" for batch in facts["batch"])]
    if USERS in facts["batch"]:
        keys.append("load")
        header.append(f"{USERS} users, {PROMPT_TOKENS} in, {GENERATED_TOKENS} out (worked out)")

    def rounds(who: str | None, peer: str | None = None) -> dict[tuple, dict]:
        """Rates by peer and round, then by column: those that pelton or the peer itself measured, beside one peer or all."""
        found = {}
        for row in rows:
            if "case" in row and row["who"] == who and peer in (None, row["peer"]):
                found.setdefault((row["peer"], row["round"]), {})[row.get("batch", "prefill")] = row["tokens_per_s"]
        for rates in found.values():
            if {"prefill", USERS} <= rates.keys():
                rates["load"] = load_rate(rates)
        return found

    def cells(values: dict[tuple, dict], show) -> list[str]:
        """One for each column, from what the rounds have for it; and how many rounds there were."""
        columns = [[rates[key] for rates in values.values() if key in rates] for key in keys]
        return [show(column) if column else "–" for column in columns] + [str(len(values))]

    lines = [header + ["rounds"]]
    if of_pelton := rounds("pelton"):
        about = facts["pelton"][weights]
        lines.append([f"pelton {about['version']}: {about['weights']}, KV {about['kv']}, {about['device']}", *cells(of_pelton, rate)])
    for peer in dict.fromkeys(row["peer"] for row in rows):
        about = next((row["facts"] for row in rows if row["peer"] == peer and "facts" in row), None)
        reason = next((row["reason"] for row in rows if row["peer"] == peer and "reason" in row), None)
        name = f"{about['version']}: {about['weights']}, KV {about['kv']}" if about else peer
        ours, theirs = rounds("pelton", peer), rounds(peer, peer)
        lines.append([f"{name}; failed: {reason}" if reason else name, *cells(theirs, rate)])
        if theirs:
            over = {place: {key: ours[place][key] / value for key, value in rates.items() if key in ours.get(place, {})}
                    for place, rates in theirs.items()}
            lines.append(["  pelton over it", *cells(over, ratio)[:-1], ""])
    return lines


def load_rate(rates: dict) -> float:
    """Generated tokens per second of `USERS` who come at once, from the rates of prefill and of decoding: everything but scheduling."""
    seconds = USERS * PROMPT_TOKENS / rates["prefill"] + USERS * GENERATED_TOKENS / rates[USERS]
    return USERS * GENERATED_TOKENS / seconds


def rate(values: list[float]) -> str:
    value = median(values)
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def ratio(values: list[float]) -> str:
    """The median, and what it is the median of when that is more than one."""
    text = f"{median(values):.2f} x"
    return text if len(values) < 2 else f"{text} ({min(values):.2f} to {max(values):.2f})"


def formatted(lines: list[list[str]], markdown: bool) -> list[str]:
    if markdown:
        rule = "| --- |" + " ---: |" * (len(lines[0]) - 1)
        text = [f"| {' | '.join(cell.strip().replace('|', '/') for cell in line)} |" for line in lines]
        return [text[0], rule, *text[1:]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]).rstrip() for line in lines]
