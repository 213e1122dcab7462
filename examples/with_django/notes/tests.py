"""`python manage.py test`: with a pool as without."""

from django.test import TestCase

from .models import Note


class NotesTest(TestCase):
    def test_a_note(self):
        self.client.post("/write", {"text": "buy milk", "tags": "home shop"})
        note = Note.objects.get()
        assert self.client.get(f"/read/{note.pk}").json() == {"text": "buy milk", "tags": ["home", "shop"]}
        assert "buy milk</a> (1 times read)" in self.client.get("/").content.decode()

    def test_load_merge_and_export(self):
        assert self.client.post("/load", "one\ntwo\n", content_type="text/plain").content == b"2\n"
        two, one = Note.objects.order_by("-pk")
        self.client.post(f"/merge/{one.pk}/{two.pk}")
        lines = b"".join(self.client.get("/export").streaming_content).decode()
        assert lines == f'{one.pk},"one\ntwo",[],0\r\n'
