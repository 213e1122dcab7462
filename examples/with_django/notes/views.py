"""What a request does with its connection: nothing special, which is the point."""

import csv
import json

from django.db import connection, transaction
from django.db.models import F
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from greenpg.integrations.django import run_in_transaction

from .models import Note


def index(request):
    return render(request, "notes/index.html", {"notes": Note.objects.all()[:20]})


@csrf_exempt  # an example has no users
@require_POST
def write(request):
    Note.objects.create(text=request.POST["text"], tags=request.POST.get("tags", "").split())
    return redirect("index")


def read(request, pk):
    """Count the reader and show the note, in one transaction: two statements, three round trips."""
    with transaction.atomic():
        note = get_object_or_404(Note.objects.select_for_update(), pk=pk)
        note.reads = F("reads") + 1
        note.save(update_fields=["reads"])
    return JsonResponse({"text": note.text, "tags": note.tags})


@csrf_exempt
@require_POST
def merge(request, pk, other):
    """Two rows are locked, in whatever order; a deadlock with somebody else's merge is repeated."""

    def move():
        target, source = Note.objects.select_for_update().get(pk=pk), Note.objects.select_for_update().get(pk=other)
        target.text += "\n" + source.text
        target.tags = sorted({*target.tags, *source.tags})
        target.save()
        source.delete()

    run_in_transaction(move)
    return redirect("index")


def export(request):
    """All notes, however many: 500 at a time, and the others' requests run in between."""

    class Line:
        def write(self, line):
            return line

    writer = csv.writer(Line())
    lines = (
        writer.writerow([note.pk, note.text, json.dumps(note.tags), note.reads])
        for note in Note.objects.iterator(chunk_size=500)
    )
    return StreamingHttpResponse(lines, content_type="text/csv")


@csrf_exempt
@require_POST
def load(request):
    """A COPY from the request's body: one note a line."""
    with transaction.atomic(), connection.cursor() as cursor:
        with cursor.copy("COPY notes_note (text, tags, written, reads) FROM STDIN") as copy:
            for line in request:
                copy.write_row([line.decode().rstrip("\n"), "[]", "now", 0])
        count = cursor.rowcount
    return HttpResponse(f"{count}\n")


def pool(request):
    """What the pool of this process is doing."""
    return JsonResponse(connection.pool.get_stats())
