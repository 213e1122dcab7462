"""What requests do, and what is done to them."""

import io

import gevent
from django.db import connection, transaction
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from greenlet import getcurrent

from .models import Item

NAMES = ["read", "orm", "in_atomic", "errors", "integrity_error", "copy", "stream", "left_open", "spawned", "killed"]
NAMES += ["killed_in_atomic", "timed_out", "pool"]


def _sleep(seconds):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


def read(request):
    return HttpResponse(f"{Item.objects.count()}\n")


def orm(request):
    item = Item.objects.create(name="orm", data={"numbers": [1, 2]})
    _sleep(float(request.GET.get("seconds", "0.02")))
    again = Item.objects.get(pk=item.pk)
    assert again.data == {"numbers": [1, 2]} and again.made.utcoffset() is not None
    again.delete()
    return HttpResponse("orm\n")


def in_atomic(request):
    with transaction.atomic():
        outer = Item.objects.create(name="in_atomic")
        try:
            with transaction.atomic():
                Item.objects.create(name="rolled back")
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        _sleep(float(request.GET.get("seconds", "0.02")))
        Item.objects.select_for_update().get(pk=outer.pk)
    outer.delete()
    return HttpResponse("in_atomic\n")


@transaction.atomic
def errors(request):
    Item.objects.create(name="rolled back")
    raise RuntimeError("an error of the view's")


@transaction.atomic
def integrity_error(request):
    item = Item.objects.create(name="rolled back")
    Item.objects.create(pk=item.pk)


def copy(request):
    source, target = io.StringIO("copy\n" * 100), io.StringIO()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE copied (name text) ON COMMIT DROP")
        cursor.copy_expert("COPY copied FROM STDIN", source)
        cursor.copy_expert("COPY copied TO STDOUT", target)
    return HttpResponse(target.getvalue())


def stream(request):
    """10 MB, through a cursor of the server's."""

    def lines():
        for item in Item.objects.filter(name="streamed").iterator(chunk_size=50):
            yield f"{item.pk} {'.' * 2000}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def left_open(request):
    transaction.set_autocommit(False)
    Item.objects.create(name="rolled back")
    return HttpResponse("left_open\n")


def spawned(request):
    """Greenlets of the view's own, of which none calls connection.close()."""
    tasks = [gevent.spawn(Item.objects.count) for _ in range(5)]
    gevent.joinall(tasks)
    return JsonResponse({"successful": sum(task.successful() for task in tasks)})


def killed(request):
    gevent.spawn_later(0.05, getcurrent().kill, block=False)
    _sleep(60)


@transaction.atomic
def killed_in_atomic(request):
    Item.objects.create(name="rolled back")
    gevent.spawn_later(0.05, getcurrent().kill, block=False)
    _sleep(60)


def timed_out(request):
    try:
        with gevent.Timeout(0.05), transaction.atomic():
            Item.objects.create(name="rolled back")
            _sleep(60)
    except gevent.Timeout:
        return HttpResponse(f"{Item.objects.filter(name='nothing').count()}\n", status=503)


def pool(request):
    """The pool's statistics."""
    return JsonResponse(connection.pool.get_stats())
