"""Writes tables.json: tables as text, and the rows that Python's csv module reads from them.

TSV without quoting, as GLUE's files are; CSV with quotes, as RFC 4180 has them. Needs nothing but Python."""

import csv
import io
import json
import pathlib

TSV = {
    # As in MRPC: a quote opens one sentence and closes another, or none.
    "glue": 'text\tother\tlabel\n'
            '"I did it ," he said .\tHe said he did it .\t1\n'
            '"We are done .\tWe stop here .\t0\n'
            'A b c .\t"A b c . "\t1\n'
            'one\ttwo\t0\n',
    "only quotes": 'text\tlabel\n"\t""\n""\t"\n"""\tx\n',
    "crlf": 'text\tlabel\r\n"a\tb"\r\n\r\n c \t"d"\r\n',
    "no last line end": 'text\tlabel\n5" disk\tb',
}
CSV = {
    "quoted": 'text,label\n"a, b","c ""d"""\n"two\nlines",x\n',
    "quotes in bare fields": 'text,label\n5" disk,a "b" c\n',
    "empty quoted": 'text,other,label\na,"",b\n',
    "crlf": 'text,label\r\n"a\r\nb",c\r\nd,e\r\n',
    "no last line end": 'text,label\na,"b"',
}


def rows(text, **dialect):
    return [row for row in csv.reader(io.StringIO(text, newline=""), **dialect) if row][1:]


def main():
    tables = [{"name": f"{name}.tsv", "text": text, "rows": rows(text, delimiter="\t", quoting=csv.QUOTE_NONE)}
              for name, text in TSV.items()]
    tables += [{"name": f"{name}.csv", "text": text, "rows": rows(text, strict=True)} for name, text in CSV.items()]
    path = pathlib.Path(__file__).with_name("tables.json")
    path.write_text(json.dumps(tables, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
