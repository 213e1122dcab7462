"""The site's addresses."""

from django.urls import path

from . import views

urlpatterns = [
    path("", views.index, name="index"),
    path("write", views.write),
    path("read/<int:pk>", views.read),
    path("merge/<int:pk>/<int:other>", views.merge),
    path("export", views.export),
    path("load", views.load),
    path("pool", views.pool),
]
