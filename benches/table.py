"""Tables in Markdown."""


def markdown(header, cells):
    lines = ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *cells]]
    return "\n".join(lines)
