"""A limit on a rate."""

from kernelsvc.egress.token_bucket import TokenBucket


def test_a_burst_and_then_the_rate():
    bucket = TokenBucket(10.0, 3, now=0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(0.0) == 0.1
    assert bucket.take(0.05) == 0.05
    assert bucket.take(0.1) == 0.0
    assert [bucket.take(100.0) == 0.0 for _ in range(4)] == [True, True, True, False]
