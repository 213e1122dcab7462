# ruff: noqa: PT009, PT027
"""What `manage.py test django_site.site_tests` runs: one of each kind of Django's tests, twice for --parallel."""

import threading
import urllib.request

from django.db import connection, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase, skipUnlessDBFeature

from .models import Item


class InTransaction(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.item = Item.objects.create(name="of the class")

    def test_one(self):
        Item.objects.create(name="one")
        self.assertEqual(Item.objects.count(), 2)

    def test_two(self):
        self.assertEqual(Item.objects.get().data, {})
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            transaction.on_commit(lambda: None)
        self.assertEqual(len(callbacks), 1)

    def test_request(self):
        self.assertEqual(self.client.get("/read").content, b"1\n")
        with self.assertRaises(RuntimeError):
            self.client.get("/errors")
        self.assertEqual(Item.objects.count(), 1)


class InThreads(TransactionTestCase):
    @skipUnlessDBFeature("test_db_allows_multiple_connections")
    def test_threads_that_do_not_close(self):
        self.assertTrue(connection.settings_dict["NAME"].startswith("test_"))
        threads = [threading.Thread(target=Item.objects.create, kwargs={"name": "of a thread"}) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(Item.objects.count(), 30)


class Live(LiveServerTestCase):
    def test_server_sees_what_the_test_does(self):
        Item.objects.create(name="seen")
        for path, expected in [("/read", b"1\n"), ("/in_atomic", b"in_atomic\n"), ("/read", b"1\n")]:
            with urllib.request.urlopen(self.live_server_url + path, timeout=30) as response:
                self.assertEqual(response.read(), expected)
