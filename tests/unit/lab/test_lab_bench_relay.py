"""The arithmetic and the page of the benchmark of ai-server; what it measures needs nginx."""

from lab import bench_relay


def test_a_chunk_has_the_time_it_was_sent():
    paced = bench_relay.event("12.500000 ") + bench_relay.event("13.25 ") + bench_relay.event("", "stop")
    assert list(bench_relay.times(bench_relay.chunked(paced))) == [12.5, 13.25]


def test_table_has_the_medians():
    rounds = [
        {"p50_ms": each, "rate": 1000 * each, "first_ms": each, "lag_ms": each, "lag_p99_ms": each}
        for each in (3, 1, 2)
    ]
    table = bench_relay.table({"direct": rounds, "ai-server": rounds[:1]}, {"direct": 0, "ai-server": 63.7})
    assert "| one after the other, p50 | 2.00 ms | 3.00 ms |" in table
    assert "| 16 at once | 2,000 requests/s | 3,000 requests/s |" in table
    assert table.endswith("| memory after it |  | 64 MiB |")


def test_section_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\nText.\n")
    monkeypatch.setattr(bench_relay, "PAGE", page)
    for table in ("old", "new"):
        bench_relay.write(bench_relay.section(table, 3))
    assert page.read_text().startswith(f"# Page\n\nText.\n\n{bench_relay.MARK}\n")
    assert page.read_text().count(bench_relay.MARK) == 1 and page.read_text().endswith("\nnew\n")
