"""Templates as scripts give them to `inspect --format`."""

import pytest

from lighter.ctl.gotemplate import GoTemplate
from lighter.proto.errors import InvalidArgument

VALUE = {
    "Name": "/web",
    "State": {"Running": True, "Pid": 42, "Error": ""},
    "Args": ["-c", "echo"],
    "Labels": {"a.b": "1", "tier": "web"},
    "Mounts": [{"Source": "/a", "RW": True}, {"Source": "/b", "RW": False}],
    "None": None,
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{{.Name}} {{.State.Pid}}", "/web 42"),
        ("{{json .State}}", '{"Running":true,"Pid":42,"Error":""}'),
        ('{{index .Labels "a.b"}}{{index .Labels "none"}}', "1"),
        ('{{join .Args " "}}|{{len .Args}}|{{index .Args 1}}', "-c echo|2|echo"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .State.Error}}bad{{else if .State.Pid}}good{{end}}", "good"),
        ("{{range .Mounts}}{{.Source}}:{{.RW}} {{end}}", "/a:true /b:false "),
        ("{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}", "a.b=1;tier=web;"),
        ("{{range $i, $m := .Mounts}}{{$i}}{{$m.Source}}{{$.Name}} {{end}}", "0/a/web 1/b/web "),
        ("{{with .State}}{{.Pid}}{{end}}{{with .None}}x{{else}}y{{end}}", "42y"),
        ('{{if and .State.Running (eq .State.Pid 42)}}{{upper "a"}}{{end}}', "A"),
        ('{{if or (gt .State.Pid 100) (not .None)}}{{.Name | printf "%q"}}{{end}}', '"/web"'),
        ("a {{- .Name -}} b", "a/webb"),
        ("{{.Args}} {{.None}} {{.Labels}}", "[-c echo] <nil> map[a.b:1 tier:web]"),
        ("{{/* nothing */}}\\t{{println .Name}}", "\t/web\n"),
    ],
)
def test_what_it_shows(text: str, shown: str) -> None:
    assert GoTemplate(text).render(VALUE) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("{{.Name", "{{.Absent}}", "{{.State.Absent}}", "{{if .Name}}", "{{end}}", "{{}}"),
        *("{{unknown .Name}}", "{{.Name .State}}", "{{$x}}", "{{(.Name}}", "{{len .State.Pid}}"),
        *("{{range .State.Pid}}{{end}}", '{{printf "%s %s" .Name}}', r'{{print "\d"}}'),
        *("{{index .Args 9}}", "{{if .Name}}" * 60 + "{{end}}" * 60),
    ],
)
def test_what_it_does_not_understand_is_said(text: str) -> None:
    with pytest.raises(InvalidArgument, match="read template"):
        GoTemplate(text).render(VALUE)


def test_what_an_image_says_reaches_no_terminal() -> None:
    value = {"Label": "a\x1b[2J\x9b\nb\tc\xa0\xe9", "List": ["\x07"]}
    shown = GoTemplate('{{.Label}}{{"\\n"}}{{json .Label}} {{.List}}\\n').render(value)
    assert shown == ('a\\x1b[2J\\x9b\nb\tc\xa0\xe9\n"a\\u001b[2J\\u009b\\nb\\tc\xa0\xe9" [\\x07]\n')
