from posttrain.evals import formats


def test_second_script_is_marked() -> None:
    assert formats.highlight("1+2=3, 然后 4 <b>", "latin") == "1+2=3, <mark>然后</mark> 4 &lt;b&gt;"
    assert formats.highlight("then 4", "latin") == "then 4"
    assert formats.highlight("然后 then", "cjk") == "然后 <mark>then</mark>"


def test_formats() -> None:
    assert formats.percent(0.8734) == "87.3 %"
    assert formats.signed(-0.0251) == "\N{MINUS SIGN}2.5"
    assert formats.signed(0.3) == "+30.0"
    assert formats.number(None) == "\N{EN DASH}"
    assert [formats.millions(n) for n in (918_656, 135_000_000, 1_700_000_000)] == ["0.92 M", "135 M", "1.7 B"]
