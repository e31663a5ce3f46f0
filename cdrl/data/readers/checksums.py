"""MD5 sums of the files as their authors published them, as torchvision 0.29 records them.

Not here, because nobody published any: ImageNet32, the lists of CelebAMask-HQ and of latent-diffusion, and DTD's
files (its authors' archive has one, its files have none).
"""

from __future__ import annotations

import hashlib

from cdrl.data.images.sets import DataError

PUBLISHED_MD5 = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    "svhn/train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "svhn/test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "celeba/list_attr_celeba.txt": "75e246fa4810816ffd6ee81facbd244c",
    "celeba/list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
    "fashion_mnist/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "fashion_mnist/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "fashion_mnist/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


class NotAsPublishedError(DataError):
    """A file's MD5 is not the one that was published."""


def check_published(content: bytes, name: str, where: str) -> None:
    """Check that a file's MD5 is the one published for ``name``.

    Raises:
        NotAsPublishedError: it is not; the message starts with ``where``.
    """
    expected = PUBLISHED_MD5[name]
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != expected:
        raise NotAsPublishedError(
            f"{where}: damaged: expected the published MD5 {expected}; a copy that was packed anew is read with "
            "data.check_sums=false"
        )
