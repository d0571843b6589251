"""What `virtio iperf` says: statistics by known values, tables, JSON, plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from virtio.cli.iperf.report import (
    Row,
    as_json,
    check_plot,
    difference,
    plot,
    say_rows,
    student_t,
)

# two-sided, of printed tables
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 15: 2.131,
        20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980}  # fmt: skip
T_99 = {1: 63.657, 2: 9.925, 3: 5.841, 5: 4.032, 10: 3.169, 30: 2.750}


@pytest.mark.parametrize(("confidence", "table"), [(0.95, T_95), (0.99, T_99)])
def test_student_t_is_that_of_the_tables(confidence: float, table: dict[int, float]) -> None:
    for df, t in table.items():
        assert student_t(df, confidence) == pytest.approx(t, abs=0.0006)


def test_student_t_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="0 degrees"):
        student_t(0)
    with pytest.raises(ValueError, match=r"confidence 1\.0"):
        student_t(5, 1.0)


# the sets of ministat's manual page: "iguana" and "chameleon"
IGUANA = [50, 200, 150, 400, 750, 400, 150]
CHAMELEON = [150, 400, 720, 500, 930]


def test_difference_is_that_of_ministat() -> None:
    # ministat prints: N 7, Avg 300, Stddev 238.04761; N 5, Avg 540, Stddev 299.08193; no difference at 95 %;
    # at 80 %: 240 +/- 212.215, 80% +/- 70.7384%, pooled s = 264.159
    found = difference(CHAMELEON, IGUANA)
    assert not found.proven
    found = difference(CHAMELEON, IGUANA, 0.80)
    assert found.proven
    assert found.value == pytest.approx(240)
    assert found.plus_minus == pytest.approx(212.215, abs=0.1)
    assert found.percent == pytest.approx(80)
    assert found.percent_plus_minus == pytest.approx(70.7384, abs=0.05)
    assert found.pooled == pytest.approx(264.159, abs=0.001)


def test_difference_needs_two_values_each_and_something_to_compare_with() -> None:
    with pytest.raises(ValueError, match="1 values"):
        difference([1], [1, 2])
    with pytest.raises(ValueError, match="0 reference"):
        difference([1, 2], [])
    with pytest.raises(ValueError, match="average is 0"):
        difference([1, 2], [-1, 1])


def rows() -> list[Row]:
    return [
        Row("vtnet", "guest-to-host", True, "vtnet", [900.0, 910.0, 920.0], True, 3000, 1000, 30_000_000, 70_000,
            400, 38, 2),
        Row("vtnet", "guest-to-host", False, "vtnet, offloads off", [100.0, 101.0, 102.0], True, 9000, 1000, 13_500_000,
            70_000, 500, 0, 0),
        Row("tap-loop", "guest-to-host", True, "tap-loop", [1000.0, 1001.0, 999.0], True, 3100, 900, 31_000_000),
        Row("vtnet", "host-to-guest", True, "vtnet", [950.123456], False, 7, 0, 700, 0, 1, 1, 0, 700),
    ]  # fmt: skip


def test_json_is_the_object_that_was_promised() -> None:
    found = json.loads(json.dumps(as_json(rows())))
    assert list(found) == ["rows"]
    assert [list(row) for row in found["rows"]] == 4 * [
        [
            "nic",
            "direction",
            "offloads",
            "mbit_s",
            "median",
            "verified",
            "packets",
            "kicks",
            "interrupts",
            "receive_interrupts",
            "transmit_interrupts",
        ]
    ]
    assert found["rows"][0] == {
        "nic": "vtnet", "direction": "guest-to-host", "offloads": True, "mbit_s": [900.0, 910.0, 920.0],
        "median": 910.0, "verified": True, "packets": 3000, "kicks": 400, "interrupts": 40,
        "receive_interrupts": 38, "transmit_interrupts": 2,
    }  # fmt: skip
    assert found["rows"][3]["mbit_s"] == [950.1]
    assert found["rows"][3]["verified"] is False


def test_text_has_the_columns_of_2011_the_differences_and_the_prices() -> None:
    text = say_rows(rows())
    lines = text.splitlines()
    assert lines[0] == "guest-to-host, Mbit/s"
    assert lines[1].split() == ["N", "Min", "Max", "Median", "Avg", "Stddev", "verified"]
    assert lines[2].split() == ["x", "vtnet", "3", "900.0", "920.0", "910.0", "910.0", "10.0", "yes"]
    assert lines[4].split() == ["*", "tap-loop", "3", "999.0", "1001.0", "1000.0", "1000.0", "1.0", "yes"]
    assert "vtnet: difference from tap-loop at 95.0% confidence; median 0.910 x tap-loop" in text
    assert "    -90 +/- 16.1098\n" in text
    assert "    -9% +/- 1.611%" in text
    assert "(Student's t, pooled s = 7.10634)" in text
    assert "vtnet: 9.01 x vtnet, offloads off" in text
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == ["packets"])
    assert lines[at + 1].split() == ["x", "vtnet", "3,000", "10,000", "400", "10.0", "38", "2", "100.0", "0.000"]
    assert lines[at + 3].split() == ["*", "tap-loop", "3,100", "10,000", "0", "-", "0", "0", "-", "0.000"]
    back = text[text.index("host-to-guest, Mbit/s") :].splitlines()
    assert back[2].split() == ["x", "vtnet", "1", "950.1", "950.1", "950.1", "950.1", "-", "NO"]
    assert "confidence" not in "".join(back)  # one value proves nothing
    assert back[-1].split()[-1] == "1.000"
    assert all(line == line.rstrip() for line in lines)


def test_text_says_when_no_difference_is_proven() -> None:
    near = [
        Row("vtnet", "guest-to-host", True, "vtnet", [10.0, 11.0, 12.0]),
        Row("tap-loop", "guest-to-host", True, "tap-loop", [10.5, 11.0, 12.5]),
    ]
    assert "vtnet: no difference from tap-loop proven at 95.0% confidence; median 1.000 x tap-loop" in say_rows(near)


def test_text_of_rows_that_failed_before_any_run() -> None:
    text = say_rows([Row("vtnet", "guest-to-host", True, "v", [], False), Row("tap-loop", "guest-to-host", True, "t")])
    assert text.splitlines()[2].split() == ["x", "v", "0", "0.0", "0.0", "0.0", "0.0", "-", "NO"]


def test_a_plot_is_a_png_or_an_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, begin in (("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")):
        plot(rows(), str(tmp_path / name))
        assert (tmp_path / name).read_bytes().startswith(begin)
    plot([], str(tmp_path / "empty.png"))
    with pytest.raises(ValueError, match=r"a\.jpeg"):
        plot(rows(), str(tmp_path / "a.jpeg"))


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"virtio\[plot\]"):
        check_plot("a.png")
