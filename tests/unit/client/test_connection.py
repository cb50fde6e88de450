from kernelsvc.client.connection import backoff


def test_pauses_grow_to_a_limit_and_differ_between_clients():
    assert [backoff(n, 1.0) for n in range(4)] == [0.05, 0.1, 0.2, 0.4]
    assert backoff(50, 1.0) == 5.0
    assert backoff(3, 0.0) == 0.2
